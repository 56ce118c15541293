//! What the command prints: one listing in four forms, and colours only where a person reads them.

mod table;

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::{Exit, Failure};
pub use table::{Cell, Table};

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns that fit a terminal.
    #[default]
    Table,
    /// Every column.
    Wide,
    /// One JSON array.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Something that has a row in a listing.
pub trait Row: Serialize {
    /// Headings of the columns of the narrow table.
    const HEADINGS: &'static [&'static str];
    /// Headings of the columns that only the wide table has.
    const WIDE_HEADINGS: &'static [&'static str];
    /// The cells, as many as there are headings.
    fn cells(&self) -> Vec<Cell>;
    /// The cells of the wide columns.
    fn wide_cells(&self) -> Vec<Cell>;
}

/// Prints `rows` to standard output; `nothing` is what people read when there are none.
///
/// # Errors
/// Standard output is closed or full.
pub fn print_list<R: Row>(rows: &[R], format: Format, nothing: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    match format {
        Format::Json => write_json(&mut out, &rows),
        Format::Yaml => write_yaml(&mut out, &rows),
        Format::Table | Format::Wide if rows.is_empty() => writeln!(io::stderr(), "{nothing}"),
        Format::Table | Format::Wide => write!(out, "{}", render(rows, format == Format::Wide)),
    }
    .map_err(cannot_print)
}

/// Prints one value: as JSON, as YAML, or as the lines that `describe` gives.
///
/// # Errors
/// Standard output is closed or full.
pub fn print_one<T: Serialize>(value: &T, format: Format, describe: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    match format {
        Format::Json => write_json(&mut out, value),
        Format::Yaml => write_yaml(&mut out, value),
        Format::Table | Format::Wide => write!(out, "{}", describe(value)),
    }
    .map_err(cannot_print)
}

/// Prints an error to standard error.
pub fn print_failure(failure: &Failure) {
    // A closed standard error leaves nobody to tell.
    let _ = writeln!(anstream::stderr(), "{} {failure}", red("error:"));
}

/// `text` for a good outcome.
pub fn green(text: &str) -> String {
    format!("\x1b[32m{text}\x1b[0m")
}

/// `text` for a bad outcome.
pub fn red(text: &str) -> String {
    format!("\x1b[31m{text}\x1b[0m")
}

/// `text` for a heading.
pub fn bold(text: &str) -> String {
    format!("\x1b[1m{text}\x1b[0m")
}

/// `text` for what is only context.
pub fn dim(text: &str) -> String {
    format!("\x1b[2m{text}\x1b[0m")
}

/// The failure of a write to standard output.
pub fn cannot_print(error: io::Error) -> Failure {
    Failure::new(Exit::Refused, "cannot write to standard output")
        .found(error)
        .next("check where the output of this command goes")
}

pub(crate) fn render<R: Row>(rows: &[R], wide: bool) -> Table {
    let mut headings = R::HEADINGS.to_vec();
    if wide {
        headings.extend(R::WIDE_HEADINGS);
    }
    let mut table = Table::new(&headings);
    for row in rows {
        let mut cells = row.cells();
        if wide {
            cells.extend(row.wide_cells());
        }
        table.push(cells);
    }
    table
}

fn write_json<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

fn write_yaml<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
    write!(out, "{}{}", text, if text.ends_with('\n') { "" } else { "\n" })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Ring {
        name: &'static str,
        closed: bool,
        since: Option<u32>,
    }

    impl Row for Ring {
        const HEADINGS: &'static [&'static str] = &["NAME", "CLOSED"];
        const WIDE_HEADINGS: &'static [&'static str] = &["SINCE"];
        fn cells(&self) -> Vec<Cell> {
            vec![self.name.into(), Cell::yes_no(self.closed)]
        }
        fn wide_cells(&self) -> Vec<Cell> {
            vec![Cell::optional(self.since)]
        }
    }

    const RINGS: [Ring; 2] =
        [Ring { name: "first", closed: true, since: Some(1) }, Ring { name: "a-second", closed: false, since: None }];

    #[test]
    fn columns_line_up_in_spite_of_their_colours() {
        let plain = anstream::adapter::strip_str(&render(&RINGS, false).to_string()).to_string();
        assert_eq!(plain, "NAME      CLOSED\nfirst     yes\na-second  no\n");
    }

    #[test]
    fn the_wide_table_has_every_column_and_a_dash_for_what_is_unknown() {
        let plain = anstream::adapter::strip_str(&render(&RINGS, true).to_string()).to_string();
        assert_eq!(plain, "NAME      CLOSED  SINCE\nfirst     yes     1\na-second  no      -\n");
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let (mut json, mut yaml) = (Vec::new(), Vec::new());
        write_json(&mut json, &RINGS).unwrap();
        write_yaml(&mut yaml, &RINGS).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_slice(&yaml).unwrap();
        assert_eq!(json, yaml);
        assert_eq!(json[1]["since"], serde_json::Value::Null);
    }
}
