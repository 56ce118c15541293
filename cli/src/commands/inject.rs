//! `byrnie inject`: the webhook's injection, into files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use byrnie_api::{ImageReference, MeshSettings, Object, Problem};
use byrnie_injector::inject::{ProxyImage, Settings};
use byrnie_injector::offline::{Fate, Report, inject_object};
use serde_json::Value;

use crate::args::InjectArgs;
use crate::failure::{Exit, Failure};
use crate::output::{green, red};

/// More than any file of manifests that people write, and little enough to be held.
const MOST_BYTES: u64 = 32 * 1024 * 1024;

pub(super) fn run(args: &InjectArgs) -> Result<Exit, Failure> {
    let settings = Settings::new(&mesh(args)?, &image(args)?);
    let mut documents = read(&args.file)?;
    let mut reports = Vec::new();
    for document in &mut documents {
        reports.extend(inject_object(document, &settings));
    }
    let mut errors = anstream::stderr();
    for report in &reports {
        // A closed standard error leaves nobody to tell.
        let _ = write!(errors, "{}", describe(report));
    }
    let refused = reports.iter().filter(|report| matches!(report.fate, Fate::Refused(_))).count();
    if refused > 0 {
        let objects = if refused == 1 { "1 object is".to_owned() } else { format!("{refused} objects are") };
        let _ = writeln!(errors, "{objects} refused; nothing was printed");
        return Ok(Exit::Negative);
    }
    print(&documents).map_err(|error| Failure::new(Exit::Refused, "can't write to standard output").found(error))?;
    Ok(Exit::Success)
}

fn image(args: &InjectArgs) -> Result<ProxyImage, Failure> {
    let mut image = ProxyImage { pull_policy: args.image_pull_policy, ..ProxyImage::default() };
    if let Some(text) = &args.image {
        image.reference = text.parse::<ImageReference>().map_err(|problem| {
            Failure::new(Exit::Usage, "--image is no image").expected(problem.expected).found(problem.found)
        })?;
    }
    Ok(image)
}

fn mesh(args: &InjectArgs) -> Result<MeshSettings, Failure> {
    let Some(path) = &args.mesh_config else {
        return Ok(MeshSettings::default());
    };
    let failure = || Failure::new(Exit::Usage, format!("{} is no MeshConfig", path.display()));
    let documents = read(path)?;
    let one = <[Value; 1]>::try_from(documents).map_err(|documents| {
        failure().expected("one document, a MeshConfig").found(format!("{} documents", documents.len()))
    });
    let [mut object] = one?;
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    match byrnie_api::parse(object) {
        Ok(Object::MeshConfig(config)) => {
            config.spec.settings().map_err(|problems| failure().found(in_words(&problems)))
        }
        Ok(other) => Err(failure().expected("a MeshConfig").found(other)),
        Err(error) => Err(failure().found(in_words(&error.problems))),
    }
}

fn read(path: &Path) -> Result<Vec<Value>, Failure> {
    let failure = || Failure::new(Exit::Usage, format!("can't read {}", path.display()));
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(MOST_BYTES + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
    };
    read.map_err(|error| failure().found(error))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(failure().expected(format!("at most {MOST_BYTES} bytes")).found("more"));
    }
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(&text)
        .map_err(|error| failure().expected("YAML or JSON").found(error.to_string()))?;
    documents.retain(|document| !document.is_null());
    Ok(documents)
}

fn print(documents: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            writeln!(out, "---")?;
        }
        let text = serde_saphyr::to_string(document).map_err(io::Error::other)?;
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            writeln!(out)?;
        }
    }
    out.flush()
}

fn describe(report: &Report) -> String {
    let object = &report.object;
    let mut text = match &report.fate {
        Fate::Injected => format!("{}   {object}\n", green("injected")),
        Fate::PassedBy(reason) => format!("passed by  {object}: {reason}\n"),
        Fate::MakesNoPods => format!("unchanged  {object}: it makes no pods\n"),
        Fate::Refused(problems) => format!("{}    {object}\n{}", red("refused"), indented(problems)),
    };
    for warning in &report.warnings {
        text.push_str(&format!("  warning: {}\n", warning.trim_start_matches("byrnie: ")));
    }
    text
}

fn indented(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}\n")).collect()
}

fn in_words(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    /// Kubernetes reads YAML 1.1, in which more words than `true` and `null` are no texts.
    #[test]
    fn texts_that_yaml_1_1_would_take_for_something_else_are_quoted() {
        for word in [
            "yes", "no", "on", "off", "y", "n", "true", "null", "~", "0123", "1e3", "1_000", "0x1f", "12:30", "", "1.0",
        ] {
            let text = serde_saphyr::to_string(&json!({ "value": word })).unwrap();
            assert!(text.contains(['"', '\'']), "{word} is printed as {text}");
        }
    }
}
