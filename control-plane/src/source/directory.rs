//! A directory of YAML and JSON files as the source: for one machine, for VMs, for tests.
//!
//! A file counts as a whole. When it can't be read, parsed, or is half written, what it said last stays in force, and
//! the mistake stands in the log and in the object's status. An empty file is taken for a half-written one; to take
//! objects away, delete the file or their documents.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Object, ObjectKey, Objects, Problem, Source, Stored,
    document::{self, Parsed},
    watcher::{Notice, Watcher},
};
use crate::limits;

/// Reads a directory and follows its changes with a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct DirectorySource {
    objects: watch::Receiver<Arc<Objects>>,
    end: mpsc::Sender<Notice>,
}

/// Why a directory can't be a source at all.
#[derive(Debug, thiserror::Error)]
#[error("source {path}: {reason}; give a readable directory of YAML files with --source")]
pub struct SourceError {
    /// What was given.
    pub path: PathBuf,
    /// The system's reason.
    pub reason: String,
}

impl DirectorySource {
    /// Reads everything once, then follows changes.
    ///
    /// # Errors
    /// [`SourceError`]: no directory, or not readable. Mistakes in files are no errors here, but [`Problem`]s.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |reason: io::Error| SourceError { path: path.to_owned(), reason: reason.to_string() };
        let root = path.canonicalize().map_err(failed)?;
        root.read_dir().map_err(failed)?;
        // The watch begins before the first reading: no change falls between the two.
        let (mut watcher, end) = Watcher::start(&root);
        let mut files = Files { root, known: BTreeMap::new(), lost: Vec::new() };
        files.scan(&mut watcher);
        let (sender, objects) = watch::channel(Arc::new(files.objects()));
        std::thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || follow(files, watcher, &sender))
            .map_err(failed)?;
        Ok(Self { objects, end })
    }
}

impl Source for DirectorySource {
    fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.objects.clone()
    }
}

impl Drop for DirectorySource {
    fn drop(&mut self) {
        // The thread has ended already where this fails.
        let _ = self.end.send(Notice::End);
    }
}

fn follow(mut files: Files, mut watcher: Watcher, sender: &watch::Sender<Arc<Objects>>) {
    let mut again_in = limits::SOURCE_POLL;
    while watcher.wait(again_in) {
        let scanned = files.scan(&mut watcher);
        again_in = if scanned.unsettled { limits::SOURCE_DEBOUNCE } else { limits::SOURCE_POLL };
        if scanned.changed {
            sender.send_replace(Arc::new(files.objects()));
        }
    }
}

struct Files {
    root: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    /// Folders that can't be listed, files that can't be looked at.
    lost: Vec<(PathBuf, String)>,
}

/// What is known of one file.
struct Known {
    name: Arc<str>,
    /// `None`: look again, whatever the metadata says.
    fingerprint: Option<Fingerprint>,
    /// Its content was sound as a whole at least once.
    good: bool,
    /// What holds: the last content that was sound, or, where there never was any, what is sound in the present one.
    holds: Vec<(ObjectKey, Stored)>,
    problems: Vec<Problem>,
    /// It was not there at the last look. Editors that replace a file leave its name empty for a moment.
    missed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Default)]
struct Scanned {
    changed: bool,
    /// A file was being written, or so fresh that its time stamp could stand for two contents.
    unsettled: bool,
}

impl Files {
    fn scan(&mut self, watcher: &mut Watcher) -> Scanned {
        let mut scanned = Scanned::default();
        let mut found = BTreeMap::new();
        let mut lost = Vec::new();
        list(&self.root, 0, &mut found, &mut lost);
        for (path, metadata) in &found {
            let fingerprint = Fingerprint::of(metadata);
            let known = self.known.get(path);
            if known.is_some_and(|known| known.fingerprint == Some(fingerprint)) {
                continue;
            }
            if watcher.is_being_written(path) {
                scanned.unsettled = true;
                continue;
            }
            let settled = is_settled(metadata);
            scanned.unsettled |= !settled;
            scanned.changed |= self.read(path, metadata, settled.then_some(fingerprint));
        }
        self.drop_missing(&found, &lost, &mut scanned);
        watcher.forget_missing(|path| found.contains_key(path));
        scanned
    }

    /// A file that is gone takes its objects with it; one whose folder can't be listed keeps them.
    fn drop_missing(
        &mut self,
        found: &BTreeMap<PathBuf, std::fs::Metadata>,
        lost: &[(PathBuf, String)],
        scanned: &mut Scanned,
    ) {
        scanned.changed |= self.lost != lost;
        for (folder, reason) in lost.iter().filter(|place| !self.lost.contains(place)) {
            tracing::error!(file = %folder.display(), reason, "source refused");
        }
        self.lost = lost.to_vec();
        self.known.retain(|path, known| {
            let present = found.contains_key(path) || lost.iter().any(|(folder, _)| path.starts_with(folder));
            let missed_before = std::mem::replace(&mut known.missed, !present);
            scanned.unsettled |= !present && !missed_before;
            scanned.changed |= !present && missed_before;
            present || !missed_before
        });
    }

    fn read(&mut self, path: &Path, metadata: &std::fs::Metadata, fingerprint: Option<Fingerprint>) -> bool {
        let name: Arc<str> = path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into();
        let known = self.known.entry(path.to_owned()).or_insert_with(|| Known {
            name: name.clone(),
            fingerprint: None,
            good: false,
            holds: Vec::new(),
            problems: Vec::new(),
            missed: false,
        });
        known.fingerprint = fingerprint;
        match read_bounded(path, metadata) {
            Ok(text) if text.trim().is_empty() && (known.good || !known.holds.is_empty()) => known.keep(
                "the file is empty; its last good content stays in force; delete the file to take its objects away"
                    .to_owned(),
            ),
            Ok(text) => known.take(document::parse(&name, &text)),
            Err(reason) => {
                let held = if known.good { "; its last good content stays in force" } else { "" };
                known.keep(format!("{reason}{held}"))
            }
        }
    }

    /// One of each key: the first by file name and place in the file.
    fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for (folder, reason) in &self.lost {
            objects.problems.push(Problem {
                file: folder.strip_prefix(&self.root).unwrap_or(folder).to_string_lossy().into(),
                line: 0,
                object: None,
                message: format!("can't be read: {reason}; the last good content of files in it stays in force"),
            });
        }
        for known in self.known.values() {
            objects.problems.extend(known.problems.iter().cloned());
            for (key, stored) in &known.holds {
                let Some(first) = objects.items.get(key) else {
                    objects.items.insert(Arc::new(key.clone()), stored.clone());
                    continue;
                };
                let message = format!(
                    "a second object of this kind and name; the one of {}:{} is in force; remove one of them",
                    first.file, first.line
                );
                objects.problems.push(Problem {
                    file: stored.file.clone(),
                    line: stored.line,
                    object: Some(key.clone()),
                    message,
                });
            }
        }
        objects
    }
}

impl Known {
    fn take(&mut self, parsed: Parsed) -> bool {
        let before = std::mem::take(&mut self.problems);
        let Parsed { objects, broken, mut unsupported, stand_ins } = parsed;
        let damaged = !broken.is_empty();
        if damaged && self.good {
            self.problems
                .extend(broken.into_iter().map(|problem| problem.with("the file's last good content stays in force")));
        } else {
            let held = std::mem::replace(&mut self.holds, objects);
            for (key, stand_in) in stand_ins {
                let earlier = held.iter().find(|(known, stored)| *known == key && !is_stand_in(stored));
                if let Some((_, earlier)) = earlier {
                    for problem in unsupported.iter_mut().filter(|problem| problem.object.as_ref() == Some(&key)) {
                        *problem = problem.clone().with("its last good version stays in force");
                    }
                    self.holds.push((key, earlier.clone()));
                } else {
                    self.holds.push((key, stand_in));
                }
            }
            // What can't be read may be one of these: an object is not gone because its text is damaged.
            let refused = |key: &ObjectKey| unsupported.iter().any(|problem| problem.object.as_ref() == Some(key));
            for (key, earlier) in held {
                let lost = damaged || (key.kind == "Namespace" && refused(&key));
                if lost && !is_stand_in(&earlier) && !self.holds.iter().any(|(known, _)| *known == key) {
                    self.holds.push((key, earlier));
                }
            }
            self.good = !damaged;
            self.problems.extend(broken.into_iter().chain(unsupported));
        }
        self.tell(&before);
        true
    }

    fn keep(&mut self, message: String) -> bool {
        let problem = Problem { file: self.name.clone(), line: 0, object: None, message };
        let before = std::mem::replace(&mut self.problems, vec![problem]);
        self.tell(&before);
        before != self.problems
    }

    fn tell(&self, before: &[Problem]) {
        for problem in self.problems.iter().filter(|problem| !before.contains(problem)) {
            let (file, line) = (&*problem.file, problem.line);
            let object = problem.object.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::error!(file, line, object, reason = problem.message, "source refused");
        }
        if self.problems.is_empty() && !before.is_empty() {
            tracing::info!(file = &*self.name, "source accepted again");
        }
    }
}

impl Problem {
    fn with(mut self, consequence: &str) -> Self {
        self.message = format!("{}; {consequence}", self.message);
        self
    }
}

fn is_stand_in(stored: &Stored) -> bool {
    matches!(&*stored.object, Object::Mesh(object) if matches!(**object, byrnie_api::Object::Refused(_)))
}

impl Fingerprint {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Linux stamps files by its timer tick, 10 ms at the coarsest: two writes within one tick look like one.
fn is_settled(metadata: &std::fs::Metadata) -> bool {
    const TICK: Duration = Duration::from_millis(20);
    let modified = metadata.modified().ok();
    // A time stamp from the future (a stepped clock, another machine's file) is no reason to read for ever.
    modified.is_none_or(|modified| modified.elapsed().map_or(true, |age| age >= TICK))
}

fn list(
    folder: &Path,
    depth: usize,
    found: &mut BTreeMap<PathBuf, std::fs::Metadata>,
    lost: &mut Vec<(PathBuf, String)>,
) {
    if depth > limits::SOURCE_DEPTH {
        lost.push((folder.to_owned(), format!("more than {} folders deep, which is the bound", limits::SOURCE_DEPTH)));
        return;
    }
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(error) => {
            lost.push((folder.to_owned(), error.to_string()));
            return;
        }
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                lost.push((folder.to_owned(), error.to_string()));
                continue;
            }
        };
        // Hidden names are editors' swap files, and the other side of a mounted ConfigMap's links.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            // Only this says that it is gone, or a link to nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                lost.push((path, error.to_string()));
                continue;
            }
        };
        if metadata.is_dir() {
            list(&path, depth + 1, found, lost);
        } else if is_ours(&path) {
            if found.len() >= limits::SOURCE_FILES {
                lost.push((folder.to_owned(), format!("more than {} files, which is the bound", limits::SOURCE_FILES)));
                return;
            }
            found.insert(path, metadata);
        }
    }
}

fn is_ours(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn read_bounded(path: &Path, metadata: &std::fs::Metadata) -> Result<String, String> {
    // Opening a FIFO would wait for its writer.
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| format!("can't be read: {error}"))?;
    file.take(limits::SOURCE_FILE_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(|error| format!("can't be read: {error}"))?;
    if content.len() as u64 > limits::SOURCE_FILE_BYTES {
        return Err(format!(
            "larger than {} MiB, which is the bound for one file; split it",
            limits::SOURCE_FILE_BYTES >> 20
        ));
    }
    String::from_utf8(content).map_err(|error| {
        let line = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = line.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: expected UTF-8, found other bytes")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
