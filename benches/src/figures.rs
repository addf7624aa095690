//! Tables for people and for the program that puts them into the page.

use std::io::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One table, and what of it is drawn.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Figures {
    /// What the page calls the table.
    pub name: String,
    /// One per column; the first column is to the left, the others to the right.
    pub headings: Vec<String>,
    /// As many cells as headings each.
    pub rows: Vec<Vec<String>>,
    /// Drawings; none for a table that is clearer than any.
    pub charts: Vec<Chart>,
}

/// Bars beside each other.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Chart {
    /// What is measured.
    pub title: String,
    /// Of every bar; it also says whether more is better.
    pub unit: String,
    /// In the order of the drawing.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Bar {
    /// Bars of one group stand together.
    pub group: String,
    /// Who.
    pub label: String,
    /// How much.
    pub value: f64,
}

impl Figures {
    /// A table without rows.
    pub fn new(name: &str, headings: &[&str]) -> Self {
        let headings = headings.iter().map(ToString::to_string).collect();
        Self { name: name.into(), headings, rows: Vec::new(), charts: Vec::new() }
    }

    /// Prints the table to standard output.
    pub fn print(&self) {
        let all = || std::iter::once(&self.headings).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        for row in all() {
            let mut line = String::new();
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                line += &if at == 0 { format!("{cell:width$}") } else { format!("  {cell:>width$}") };
            }
            println!("{}", line.trim_end());
        }
    }
}

/// Prints tables, and adds them to a file, one JSON object a line, where one is named.
///
/// # Errors
/// Of the file.
pub fn append(tables: &[Figures], to: Option<&PathBuf>) -> std::io::Result<()> {
    for (n, table) in tables.iter().enumerate() {
        if n > 0 {
            println!();
        }
        table.print();
    }
    let Some(path) = to else { return Ok(()) };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    for table in tables {
        writeln!(file, "{}", serde_json::to_string(table)?)?;
    }
    Ok(())
}

/// The file after `--figures` on the command line, for programs that take little else.
pub fn asked_for() -> Option<PathBuf> {
    std::env::args_os().skip_while(|a| a != "--figures").nth(1).map(PathBuf::from)
}
