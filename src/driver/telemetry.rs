//! Log lines as people know them from Patroni: `2026-11-22 19:31:35,078 INFO: message`.
//!
//! One small `tracing` layer: a line is formatted and written at once, so that nothing is lost when the process dies, and
//! there is no queue to fill. Level and form change on reload. Lines of libraries appear at WARNING and above unless
//! `log.loggers` names them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::clock;

/// `log.*` of the local configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// Lines below it are dropped.
    pub level: Level,
    /// One JSON object per line.
    pub json: bool,
    /// Plain form; `%(asctime)s`, `%(levelname)s`, `%(message)s`, `%(name)s`, `%(process)d` are filled in.
    pub format: String,
    /// JSON form: (attribute, name in the object).
    pub json_fields: Vec<(String, String)>,
    /// strftime form of the time; `None`: `2026-11-22 19:31:35,078`.
    pub dateformat: Option<String>,
    /// Added to every JSON line.
    pub static_fields: Map<String, Value>,
    /// `patroni.log` is written here; `None`: standard error.
    pub dir: Option<PathBuf>,
    /// Mode of the file.
    pub mode: Option<u32>,
    /// Rotated copies kept.
    pub file_num: u32,
    /// Bytes after which the file is rotated.
    pub file_size: u64,
    /// Levels of single modules, ours and libraries'.
    pub loggers: BTreeMap<String, Level>,
}

impl Default for LogSettings {
    fn default() -> Self {
        let same = |s: &str| (s.to_owned(), s.to_owned());
        LogSettings {
            level: Level::INFO,
            json: false,
            format: "%(asctime)s %(levelname)s: %(message)s".to_owned(),
            json_fields: vec![same("asctime"), same("levelname"), same("message")],
            dateformat: None,
            static_fields: Map::new(),
            dir: None,
            mode: None,
            file_num: 4,
            file_size: 25_000_000,
            loggers: BTreeMap::new(),
        }
    }
}

/// The level for Patroni's word; `None` for a word it does not know.
pub fn level(word: &str) -> Option<Level> {
    Some(match word {
        "DEBUG" => Level::DEBUG,
        "INFO" => Level::INFO,
        "WARN" | "WARNING" => Level::WARN,
        "ERROR" | "FATAL" | "CRITICAL" => Level::ERROR,
        _ => return None,
    })
}

fn word(level: Level) -> &'static str {
    match level {
        Level::TRACE | Level::DEBUG => "DEBUG",
        Level::INFO => "INFO",
        Level::WARN => "WARNING",
        Level::ERROR => "ERROR",
    }
}

struct Sink {
    settings: LogSettings,
    file: Option<(fs_err::File, u64)>,
}

static SINK: OnceLock<Mutex<Sink>> = OnceLock::new();

fn sink() -> MutexGuard<'static, Sink> {
    let sink = SINK.get_or_init(|| Mutex::new(Sink { settings: LogSettings::default(), file: None }));
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts these settings in force; the first call installs the subscriber.
///
/// # Errors
/// One line when the log file cannot be opened; lines go to standard error then.
pub fn configure(settings: LogSettings) -> Result<(), String> {
    let opened = settings.dir.as_deref().map(|dir| open(dir, settings.mode)).transpose();
    let (file, result) = match opened {
        Ok(file) => (file, Ok(())),
        Err(e) => (None, Err(format!("log.dir: {e}; logging to standard error"))),
    };
    *sink() = Sink { settings, file };
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // A second subscriber (a test's) stays; lines go there then.
        let ours = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Lines));
        debug_assert!(ours.is_ok() || cfg!(test));
    });
    result
}

fn open(dir: &Path, mode: Option<u32>) -> std::io::Result<(fs_err::File, u64)> {
    fs_err::create_dir_all(dir)?;
    let mut options = fs_err::OpenOptions::new();
    options.create(true).append(true);
    if let Some(mode) = mode {
        options.mode(mode);
    }
    let file = options.open(dir.join("patroni.log"))?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

impl Sink {
    fn write(&mut self, mut line: String) {
        line.push('\n');
        self.rotate(line.len() as u64);
        let written = match &mut self.file {
            Some((file, size)) => {
                *size += line.len() as u64;
                file.write_all(line.as_bytes())
            }
            None => std::io::stderr().lock().write_all(line.as_bytes()),
        };
        // A log that cannot be written has nowhere to say so.
        drop(written);
    }

    fn rotate(&mut self, more: u64) {
        let Some(dir) = &self.settings.dir else { return };
        let Some((_, size)) = &self.file else { return };
        if *size == 0 || size + more <= self.settings.file_size {
            return;
        }
        let name = |n: u32| if n == 0 { dir.join("patroni.log") } else { dir.join(format!("patroni.log.{n}")) };
        for n in (0..self.settings.file_num).rev() {
            // Copies that are not there yet cannot be renamed.
            drop(fs_err::rename(name(n), name(n + 1)));
        }
        if self.settings.file_num == 0 {
            drop(fs_err::remove_file(name(0)));
        }
        self.file = open(dir, self.settings.mode).ok();
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        let ours = target == "patroni" || target.starts_with("patroni::");
        let named = self.settings.loggers.iter().filter(|(name, _)| {
            target.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        });
        let limit = match named.max_by_key(|(name, _)| name.len()) {
            Some((_, level)) => *level,
            None if ours => self.settings.level,
            // It repeats, without saying where, what our own line about the same request says.
            None if target.starts_with("kube_client") => return false,
            None => self.settings.level.min(Level::WARN),
        };
        *metadata.level() <= limit
    }
}

/// `2026-11-22 19:31:35,078` in local time, or the configured form.
fn timestamp(dateformat: Option<&str>) -> String {
    let micros = clock::wall().0;
    let Ok(time) = jiff::Timestamp::from_microsecond(micros) else { return micros.to_string() };
    let zoned = time.to_zoned(jiff::tz::TimeZone::system());
    match dateformat {
        Some(form) => jiff::fmt::strtime::format(form, &zoned).unwrap_or_else(|_| zoned.to_string()),
        None => format!("{},{:03}", zoned.strftime("%Y-%m-%d %H:%M:%S"), zoned.millisecond()),
    }
}

fn attribute(name: &str, settings: &LogSettings, metadata: &Metadata<'_>, message: &str) -> String {
    match name {
        "asctime" => timestamp(settings.dateformat.as_deref()),
        "levelname" => word(*metadata.level()).to_owned(),
        "message" => message.to_owned(),
        "name" => metadata.target().replace("::", "."),
        "module" => metadata.target().rsplit("::").next().unwrap_or_default().to_owned(),
        "process" => std::process::id().to_string(),
        "threadName" => "MainThread".to_owned(),
        _ => String::new(),
    }
}

fn render(settings: &LogSettings, metadata: &Metadata<'_>, message: &str) -> String {
    if settings.json {
        let mut object = Map::new();
        for (name, label) in &settings.json_fields {
            object.insert(label.clone(), attribute(name, settings, metadata, message).into());
        }
        object.extend(settings.static_fields.clone());
        return Value::Object(object).to_string();
    }
    let mut line = String::with_capacity(message.len() + 40);
    let mut rest = settings.format.as_str();
    while let Some(start) = rest.find("%(") {
        line.push_str(&rest[..start]);
        rest = &rest[start + 2..];
        let Some(end) = rest.find(')') else { break };
        line.push_str(&attribute(&rest[..end], settings, metadata, message));
        let after = &rest[end + 1..];
        rest = after.trim_start_matches(|c: char| c == '-' || c.is_ascii_digit());
        rest = rest.strip_prefix(['s', 'd']).unwrap_or(rest);
    }
    line.push_str(rest);
    line
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level may change on reload: never remembered per call site.
        Interest::sometimes()
    }
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        sink().wants(metadata)
    }
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        text.message.push_str(&text.fields);
        let mut sink = sink();
        let line = render(&sink.settings, event.metadata(), &text.message);
        sink.write(line);
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a String cannot fail.
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        debug_assert!(written.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe;
    impl Probe {
        fn line(settings: &LogSettings) -> String {
            struct Catch(std::sync::Arc<Mutex<String>>, LogSettings);
            impl<S: Subscriber> Layer<S> for Catch {
                fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                    let mut text = Text::default();
                    event.record(&mut text);
                    text.message.push_str(&text.fields);
                    *self.0.lock().unwrap() = render(&self.1, event.metadata(), &text.message);
                }
            }
            let out = std::sync::Arc::new(Mutex::new(String::new()));
            let layer = Catch(out.clone(), settings.clone());
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                tracing::warn!(ttl = 30, "hello");
            });
            out.lock().unwrap().clone()
        }
    }

    #[test]
    fn a_line_looks_like_patronis() {
        let line = Probe::line(&LogSettings::default());
        let (time, rest) = line.split_at(23);
        assert_eq!(rest, " WARNING: hello ttl=30");
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999-99-99 99:99:99,999");
    }

    #[test]
    fn json_lines_carry_renamed_and_static_fields() {
        let settings = LogSettings {
            json: true,
            json_fields: vec![("message".into(), "message".into()), ("levelname".into(), "level".into())],
            static_fields: Map::from_iter([("app".to_owned(), Value::from("patroni"))]),
            ..LogSettings::default()
        };
        assert_eq!(Probe::line(&settings), r#"{"message":"hello ttl=30","level":"WARNING","app":"patroni"}"#);
    }

    #[test]
    fn a_format_with_widths_and_other_attributes_is_filled_in() {
        let settings = LogSettings { format: "[%(levelname)-8s] %(message)s!".into(), ..LogSettings::default() };
        assert_eq!(Probe::line(&settings), "[WARNING] hello ttl=30!");
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_copy_goes() {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            LogSettings { dir: Some(dir.path().to_owned()), file_num: 2, file_size: 10, ..LogSettings::default() };
        let mut sink = Sink { file: open(dir.path(), None).ok(), settings };
        for line in ["first...", "second..", "third...", "fourth.."] {
            sink.write(line.to_owned());
        }
        let read = |name: &str| fs_err::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("patroni.log"), "fourth..\n");
        assert_eq!((read("patroni.log.1"), read("patroni.log.2")), ("third...\n".into(), "second..\n".into()));
        assert!(!dir.path().join("patroni.log.3").exists());
    }
}
