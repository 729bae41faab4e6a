//! Questions to the person at the terminal, behind a trait so that a dialogue is testable as text.

use std::io::{BufRead, IsTerminal, Write};

use super::error::{CtlError, Result};

/// Where a command reads from and writes to.
pub trait Terminal {
    /// Text for stdout, as it is.
    fn out(&mut self, text: &str);
    /// One line for stderr.
    fn err(&mut self, line: &str);
    /// One line of input without its end; `None` at the end of input.
    fn read_line(&mut self) -> Option<String>;
    /// Everything that is left of the input.
    fn read_rest(&mut self) -> String;
    /// Is stdout a terminal?
    fn is_terminal(&self) -> bool;
}

/// The process's own stdin, stdout and stderr.
#[derive(Debug, Default)]
pub struct Console;

impl Terminal for Console {
    fn out(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            // The reader of the pipe is gone: nobody is left to talk to.
            std::process::exit(1);
        }
    }
    fn err(&mut self, line: &str) {
        eprintln!("{line}");
    }
    fn read_line(&mut self) -> Option<String> {
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end_matches(['\n', '\r']).to_owned()),
        }
    }
    fn read_rest(&mut self) -> String {
        std::io::read_to_string(std::io::stdin().lock()).unwrap_or_default()
    }
    fn is_terminal(&self) -> bool {
        std::io::stdout().is_terminal()
    }
}

/// `Text [default]: `, with an empty default printed as `[]`. The default answers an empty line.
///
/// # Errors
/// [`CtlError::Aborted`] at the end of input.
pub fn ask(terminal: &mut dyn Terminal, text: &str, default: &str) -> Result<String> {
    terminal.out(&format!("{text} [{default}]: "));
    let answer = line(terminal)?;
    Ok(if answer.is_empty() { default.to_owned() } else { answer })
}

/// `Text: `, asked again until something is typed.
///
/// # Errors
/// [`CtlError::Aborted`] at the end of input.
pub fn ask_required(terminal: &mut dyn Terminal, text: &str) -> Result<String> {
    loop {
        terminal.out(&format!("{text}: "));
        let answer = line(terminal)?;
        if !answer.is_empty() {
            return Ok(answer);
        }
    }
}

/// `Text [y/N]: `, asked again until the answer is y, yes, n, no or nothing.
///
/// # Errors
/// [`CtlError::Aborted`] at the end of input.
pub fn confirm(terminal: &mut dyn Terminal, text: &str) -> Result<bool> {
    loop {
        terminal.out(&format!("{text} [y/N]: "));
        match line(terminal)?.trim().to_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "" | "n" | "no" => return Ok(false),
            _ => terminal.out("Error: invalid input\n"),
        }
    }
}

fn line(terminal: &mut dyn Terminal) -> Result<String> {
    terminal.read_line().ok_or(CtlError::Aborted)
}

#[cfg(test)]
pub mod script {
    //! A terminal made of text.
    use super::Terminal;

    /// Answers in, everything printed out.
    #[derive(Default)]
    pub struct Script {
        /// Lines still to be read.
        pub input: std::collections::VecDeque<String>,
        /// What was printed, stdout and stderr together.
        pub output: String,
    }

    impl Script {
        /// With these answers.
        pub fn new(lines: &[&str]) -> Script {
            Script { input: lines.iter().map(|l| (*l).to_owned()).collect(), output: String::new() }
        }
    }

    impl Terminal for Script {
        fn out(&mut self, text: &str) {
            self.output.push_str(text);
        }
        fn err(&mut self, line: &str) {
            self.output.push_str(line);
            self.output.push('\n');
        }
        fn read_line(&mut self) -> Option<String> {
            let line = self.input.pop_front()?;
            self.output.push_str(&format!("{line}\n"));
            Some(line)
        }
        fn read_rest(&mut self) -> String {
            self.input.drain(..).map(|l| l + "\n").collect()
        }
        fn is_terminal(&self) -> bool {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{script::Script, *};

    #[test]
    fn prompts_print_their_default_and_take_it_for_an_empty_line() {
        let mut s = Script::new(&["", "x", "maybe", "YES", "", ""]);
        assert_eq!(ask(&mut s, "Primary", "pg-0").unwrap(), "pg-0");
        assert_eq!(ask(&mut s, "Candidate ['a']", "").unwrap(), "x");
        assert!(confirm(&mut s, "Sure?").unwrap());
        assert!(!confirm(&mut s, "Sure?").unwrap());
        assert_eq!(ask_required(&mut s, "Name"), Err(CtlError::Aborted));
        assert_eq!(
            s.output,
            "Primary [pg-0]: \nCandidate ['a'] []: x\nSure? [y/N]: maybe\nError: invalid input\nSure? [y/N]: YES\n\
             Sure? [y/N]: \nName: \nName: "
        );
    }
}
