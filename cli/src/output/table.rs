//! Columns that line up, coloured or not: the width of a cell is that of its text, never of its colour.

use std::fmt;

/// One cell: its text, and the colour that means something.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    colour: Option<u8>,
}

impl Cell {
    /// `yes` in green or `no` in red.
    pub fn yes_no(yes: bool) -> Self {
        Self { text: if yes { "yes" } else { "no" }.into(), colour: Some(if yes { 32 } else { 31 }) }
    }

    /// The value, or a dash where it is unknown.
    pub fn optional(value: Option<impl fmt::Display>) -> Self {
        value.map_or_else(|| "-".into(), |value| value.to_string().into())
    }

    /// The same text in green.
    #[must_use]
    pub fn good(mut self) -> Self {
        self.colour = Some(32);
        self
    }

    /// The same text in yellow.
    #[must_use]
    pub fn worth_a_look(mut self) -> Self {
        self.colour = Some(33);
        self
    }

    /// The same text in red.
    #[must_use]
    pub fn bad(mut self) -> Self {
        self.colour = Some(31);
        self
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        let text = if text.is_empty() { "-".into() } else { text };
        Self { text, colour: None }
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        number.to_string().into()
    }
}

/// Rows under headings, two spaces between columns, nothing drawn.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(headings: &[&str]) -> Self {
        let head = headings.iter().map(|text| Cell { text: (*text).to_owned(), colour: Some(1) }).collect();
        Self { rows: vec![head] }
    }

    /// Adds a row.
    pub fn push(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns).map(|column| self.width(column)).collect();
        for row in &self.rows {
            let mut padding = 0;
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "{:padding$}", "")?;
                match cell.colour {
                    Some(colour) => write!(f, "\x1b[{colour}m{}\x1b[0m", cell.text)?,
                    None => f.write_str(&cell.text)?,
                }
                padding = width + 2 - cell.text.chars().count();
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
