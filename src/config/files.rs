//! The only file access of this module: a file, or every `*.yml`/`*.yaml` of a directory in name order.
use std::path::{Path, PathBuf};

use super::SourceText;

/// Reads the configuration texts of a path. A path that does not exist gives no texts (as in Patroni: the
/// environment alone is used then).
///
/// # Errors
/// An unreadable file or directory, in one line with its name.
pub fn read(path: &Path) -> Result<Vec<SourceText>, String> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut files: Vec<PathBuf> = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)
            .map_err(|e| format!("{}: cannot list the directory: {e}", path.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|file| file.extension().is_some_and(|ext| ext == "yml" || ext == "yaml") && file.is_file())
            .collect();
        files.sort();
    }
    let text = |file: PathBuf| match std::fs::read_to_string(&file) {
        Ok(text) => Ok(SourceText { name: file.display().to_string(), text }),
        Err(e) => Err(format!("{}: cannot read the file: {e}", file.display())),
    };
    files.into_iter().map(text).collect()
}
