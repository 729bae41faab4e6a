//! How a command ends when it does not succeed.

use std::fmt;

/// Why a command ends early; each kind has its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CtlError {
    /// `Error: <text>` on stderr, exit 1.
    Plain(String),
    /// `Usage: …`, a hint, `Error: …` on stderr, exit 2.
    Usage {
        /// The command line so far, `patronictl` or `patronictl restart`.
        path: String,
        /// What follows it in the usage line.
        pieces: String,
        /// What is wrong.
        text: String,
    },
    /// End of input or Ctrl-C at a prompt: `Aborted!`, exit 1.
    Aborted,
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, CtlError>;

impl CtlError {
    /// An `Error: …` line.
    pub fn plain(text: impl Into<String>) -> Self {
        CtlError::Plain(text.into())
    }
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            CtlError::Plain(_) | CtlError::Aborted => 1,
            CtlError::Usage { .. } => 2,
        }
    }
}

impl fmt::Display for CtlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CtlError::Plain(text) => write!(f, "Error: {text}"),
            CtlError::Usage { path, pieces, text } => {
                write!(f, "Usage: {path} {pieces}\nTry '{path} --help' for help.\n\nError: {text}")
            }
            CtlError::Aborted => f.write_str("Aborted!"),
        }
    }
}
