//! The archive of `make image` holds what the Dockerfile copies, nothing else, and is small.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// "A few MB each": the whole image, unpacked.
const BYTES_MAX: u64 = 25_000_000;

/// What an image is, as far as both ways to make it say so.
#[derive(Debug, PartialEq)]
struct Image {
    /// Path → mode, as `ls -l` prints it.
    files: BTreeMap<String, String>,
    user: String,
    path: String,
    entrypoint: Value,
}

fn of_dockerfile() -> Image {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile")).unwrap();
    let last = text.rsplit_once("\nFROM ").unwrap().1;
    assert!(last.starts_with("scratch\n"), "the last stage is empty but for what it copies");
    let after =
        |word: &str| -> Vec<String> { last.lines().filter_map(|l| l.strip_prefix(word)).map(str::to_owned).collect() };
    let files = after("COPY ").into_iter().map(|copy| {
        let words: Vec<&str> = copy.split_whitespace().collect();
        assert!(words.contains(&"--chmod=0755"), "COPY {copy}: the mode of the build machine must not matter");
        ((*words.last().unwrap()).to_owned(), "-rwxr-xr-x".to_owned())
    });
    Image {
        files: files.collect(),
        user: after("USER ").remove(0),
        path: after("ENV ").remove(0),
        entrypoint: serde_json::from_str(&after("ENTRYPOINT ")[0]).unwrap(),
    }
}

fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let out = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The archive's image, and its bytes unpacked.
fn of_archive(archive: &Path) -> (Image, u64) {
    let dir = tempfile::tempdir().unwrap();
    run("tar", &["-xf", archive.to_str().unwrap()], dir.path());
    let blob = |digest: &Value| dir.path().join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let manifest = read(&blob(&read(&dir.path().join("index.json"))["manifests"][0]["digest"]));
    let config = read(&blob(&manifest["config"]["digest"]));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    let layer = blob(&manifest["layers"][0]["digest"]);
    assert_eq!(std::fs::metadata(&layer).unwrap().len(), manifest["layers"][0]["size"].as_u64().unwrap());
    let list = run("tar", &["-tvzf", layer.to_str().unwrap(), "--numeric-owner"], dir.path());
    let mut bytes = 0;
    let mut files = BTreeMap::new();
    for line in list.lines().filter(|l| !l.starts_with('d')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "0/0", "files belong to root: {line}");
        bytes += words[2].parse::<u64>().unwrap();
        files.insert(format!("/{}", words[5]), words[0].to_owned());
    }
    let config = &config["config"];
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let image = Image {
        files,
        user: text(&config["User"]),
        path: text(&config["Env"][0]),
        entrypoint: config["Entrypoint"].clone(),
    };
    (image, bytes)
}

#[test]
fn the_archive_holds_what_the_dockerfile_copies() {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    let archive = target.join("image/patroni.tar");
    assert!(archive.exists(), "{} is missing: make image", archive.display());
    let (image, bytes) = of_archive(&archive);
    assert_eq!(image, of_dockerfile());
    assert!(bytes < BYTES_MAX, "{bytes} bytes");
    assert_eq!(image.files.len(), 3);
}

/// Has this ELF file (64 bit, little endian) a segment that names the dynamic loader, PT_INTERP?
fn names_a_loader(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| elf[at..at + bytes].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    let (first, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).any(|i| number(first + i * size, 4) == 3)
}

#[test]
fn the_programs_of_the_image_are_static() {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    let dir = tempfile::tempdir().unwrap();
    run("tar", &["-xf", target.join("image/patroni.tar").to_str().unwrap()], dir.path());
    let blobs = std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().flatten();
    let layer = blobs.max_by_key(|b| b.metadata().unwrap().len()).unwrap().path();
    run("tar", &["-xzf", layer.to_str().unwrap()], dir.path());
    for program in of_dockerfile().files.keys() {
        let bytes = std::fs::read(dir.path().join(program.trim_start_matches('/'))).unwrap();
        assert!(!names_a_loader(&bytes), "{program} is not static: it names a dynamic loader");
        let help = run(dir.path().join(program.trim_start_matches('/')).to_str().unwrap(), &["--help"], dir.path());
        assert!(help.to_lowercase().contains("usage"), "{program} --help says {help}");
    }
}
