//! The log on standard error, whose level can be changed while the proxy runs.

use std::sync::Arc;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the level of the log.
#[derive(Clone, Default)]
pub struct LogLevel(Option<Arc<reload::Handle<Targets, Registry>>>);

impl LogLevel {
    /// Takes a new filter, as [`parse`] does.
    ///
    /// # Errors
    /// When the text is no filter, or the log was set up by someone else (as in tests).
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = parse(text)?;
        match &self.0 {
            Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
            None => Err("this process's log has no level that could be changed".to_owned()),
        }
    }
}

/// Reads a filter. A level alone is meant for the mesh's own code: what the HTTP/2 library says at `debug`, frame by
/// frame, would bury it.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Targets, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let own = |level: LevelFilter| {
        let others = level.min(LevelFilter::WARN);
        format!("{others},byrnie_proxy={level},byrnie_identity={level},byrnie_policy={level},byrnie_redirect={level}")
    };
    if text.split(',').any(|part| part.trim_start().starts_with('=')) {
        return Err("a level without the module that it is for".to_owned());
    }
    let filter = text.parse::<LevelFilter>().map_or_else(|_| text.to_owned(), own);
    filter.parse::<Targets>().map_err(|error| error.to_string())
}

/// Sets up the log of this process.
///
/// # Errors
/// When the filter is none, or a log is set up already.
pub fn start(text: &str) -> Result<LogLevel, String> {
    let (filter, handle) = reload::Layer::new(parse(text)?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|error| error.to_string())?;
    Ok(LogLevel(Some(Arc::new(handle))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_for_the_meshs_own_code() {
        let filter = parse("debug").map(|filter| filter.to_string()).unwrap_or_default();
        assert!(filter.contains("byrnie_proxy=debug") && filter.contains("warn"), "{filter}");
        let filter = parse("error").map(|filter| filter.to_string()).unwrap_or_default();
        assert!(!filter.contains("warn"), "{filter}");
    }

    #[test]
    fn levels_and_filters_are_taken_and_anything_else_is_not() {
        for text in ["info", "warn,byrnie_proxy=debug", "byrnie_proxy::control=trace"] {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in ["", " ", "=", "byrnie_proxy=loud"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
