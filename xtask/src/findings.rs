//! What a check found.

use std::fmt::Display;

/// Findings in the order they were made. Each names a place, what is wrong there, and the next step.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    failures: Vec<String>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Findings {
    /// Something that must be mended.
    pub(crate) fn fail(&mut self, place: impl Display, what: impl Display) {
        self.failures.push(format!("{place}: {what}"));
    }

    /// Something that should be looked at, and does not fail the check.
    pub(crate) fn warn(&mut self, place: impl Display, what: impl Display) {
        self.warnings.push(format!("{place}: {what}"));
    }

    /// What was checked, in figures: a check that looked at nothing shows.
    pub(crate) fn note(&mut self, what: impl Display) {
        self.notes.push(what.to_string());
    }

    /// Prints everything; whether the check passed.
    pub(crate) fn print(&self, name: &str) -> bool {
        for warning in &self.warnings {
            println!("{name}: warning: {warning}");
        }
        for failure in &self.failures {
            println!("{name}: FAIL: {failure}");
        }
        let verdict = if self.failures.is_empty() { "ok" } else { "FAILED" };
        println!(
            "{name}: {verdict}. {}; {} to mend, {} to look at",
            self.notes.join(", "),
            self.failures.len(),
            self.warnings.len()
        );
        self.failures.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    #[cfg(test)]
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
