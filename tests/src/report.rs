//! What a program tells: progress while it works, and at its end a table for people or JSON for programs.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// A bar on a terminal; elsewhere a line every twentieth of the way.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    total: u64,
    done: u64,
    quiet: bool,
}

impl Progress {
    /// Nothing of so much is done yet.
    pub fn new(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_prefix(what);
            let style = ProgressStyle::with_template(
                "{prefix:>8} [{bar:40}] {pos}/{len} {elapsed} (left: {eta}) {msg}",
            );
            bar.set_style(style.expect("the template is constant").progress_chars("=> "));
            bar
        });
        Self { bar, what, total, done: 0, quiet: false }
    }

    /// Progress that is told to nobody, for tests.
    pub fn silent() -> Self {
        Self { bar: None, what: "", total: 0, done: 0, quiet: true }
    }

    /// So much is done in all.
    pub fn reached(&mut self, done: u64, how: &str) {
        let done = done.min(self.total);
        let part = |done: u64| done * 20 / self.total.max(1);
        let before = part(self.done);
        self.done = self.done.max(done);
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.done);
                bar.set_message(how.to_owned());
            }
            None if !self.quiet && part(self.done) > before => {
                eprintln!("{}: {} of {} {how}", self.what, self.done, self.total);
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Rows under a heading, aligned: the first column to the left, numbers to the right, the last column as it comes.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count());
        cells.chain([heading[c].chars().count()]).max().unwrap_or_default()
    };
    let last = heading.len().saturating_sub(1);
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.enumerate().map(|(c, cell)| match c {
            0 => format!("{cell:<0$}", width(0)),
            c if c == last => cell.to_owned(),
            c => format!("{cell:>0$}", width(c)),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let head = line(&mut heading.iter().copied());
    rows.iter().fold(head, |text, row| text + &line(&mut row.iter().map(String::as_str)))
}

/// A number with its thousands set apart.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Prints what was found, as JSON or as text, and says whether it was good.
pub fn end(json: bool, report: &impl Serialize, text: &str, failures: &[String]) -> ExitCode {
    if json {
        println!("{}", serde_json::to_string_pretty(report).expect("plain data"));
    } else {
        print!("{text}");
    }
    for failure in failures.iter().take(20) {
        eprintln!("FAILED: {failure}");
    }
    if failures.len() > 20 {
        eprintln!("and {} more", failures.len() - 20);
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// This program, for those that start themselves again to be killed.
///
/// # Errors
/// How it ends, once it has said why.
pub fn this_program() -> Result<PathBuf, ExitCode> {
    std::env::current_exe().map_err(|e| {
        eprintln!("this program does not know where it is: {e}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_thousands_set_apart() {
        let rows =
            [vec!["a".into(), number(1_234_567), "x y".into()], vec!["long".into(), number(12), "z".into()]];
        let text = table(&["who", "n", "what"], &rows);
        assert_eq!(text, "who           n  what\na     1 234 567  x y\nlong         12  z\n");
        assert_eq!((number(0), number(999), number(1000)), ("0".into(), "999".into(), "1 000".into()));
    }
}
