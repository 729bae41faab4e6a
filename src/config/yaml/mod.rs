//! YAML as PyYAML reads and writes it.
//!
//! Patroni's files were written for PyYAML, that is YAML 1.1: `no` is false, `0644` is 420, `22:22` is 1342, `1e3` is
//! text. `parse` follows those rules and remembers where every value stood, so that an error can say `file:line:column`.
//! `emit` writes what `yaml.safe_dump` would write, because scripts compare the output of `patronictl show-config`.
//! Dates stay text, and keys that are not text become the text JSON would use.
mod emit;
mod parse;
mod scalar;

pub use emit::{to_string_block, to_string_flow};
pub use parse::{Located, YamlError, parse, parse_located};
pub use scalar::{float_text, resolve_plain};
