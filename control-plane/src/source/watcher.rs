//! Tells when something in a directory has changed, and which files somebody is in the middle of writing.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};

use crate::limits;

/// What the watcher thread hears.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something changed on the disk.
    Changed(Vec<Event>),
    /// The source is dropped.
    End,
}

/// Watches one directory, recursively.
pub(super) struct Watcher {
    notices: mpsc::Receiver<Notice>,
    writing: HashMap<PathBuf, Instant>,
    /// A change was heard of outside of [`Watcher::wait`].
    heard: bool,
    ended: bool,
    _watcher: Option<RecommendedWatcher>,
}

impl Watcher {
    /// Starts to watch; where the system can't, the poll alone has to do, and the log says so.
    pub(super) fn start(root: &Path) -> (Self, mpsc::Sender<Notice>) {
        let (sender, notices) = mpsc::channel();
        let events = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error means that events were lost: that too is a reason to look again.
            let _ = events.send(Notice::Changed(event.into_iter().collect()));
        })
        .and_then(|mut watcher| watcher.watch(root, RecursiveMode::Recursive).map(|()| watcher))
        .inspect_err(|error| {
            let poll = limits::SOURCE_POLL.as_secs();
            tracing::warn!(source = %root.display(), %error, "can't be told of changes: the source is read every {poll} s instead");
        })
        .ok();
        (Self { notices, writing: HashMap::new(), heard: false, ended: false, _watcher: watcher }, sender)
    }

    /// Waits for a change, for `at_most`; false: the source is dropped.
    pub(super) fn wait(&mut self, at_most: Duration) -> bool {
        let mut changed = std::mem::take(&mut self.heard);
        let at_most = if changed { limits::SOURCE_DEBOUNCE } else { at_most };
        let mut until = Instant::now() + at_most;
        while !self.ended
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            match self.notices.recv_timeout(left) {
                Ok(Notice::Changed(events)) => {
                    if self.take(events) && !changed {
                        changed = true;
                        until = until.min(Instant::now() + limits::SOURCE_DEBOUNCE);
                    }
                }
                Ok(Notice::End) | Err(RecvTimeoutError::Disconnected) => self.ended = true,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        !self.ended
    }

    /// Whether somebody wrote to the file and has not closed it.
    pub(super) fn is_being_written(&mut self, path: &Path) -> bool {
        // What was heard since the scan began counts, too.
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                Notice::Changed(events) => self.heard |= self.take(events),
                Notice::End => self.ended = true,
            }
        }
        let Some(last) = self.writing.get(path) else {
            return false;
        };
        let patient = last.elapsed() < limits::SOURCE_WRITER_PATIENCE;
        if !patient {
            self.writing.remove(path);
        }
        patient
    }

    /// Forgets files that are gone.
    pub(super) fn forget_missing(&mut self, exists: impl Fn(&Path) -> bool) {
        self.writing.retain(|path, last| exists(path) && last.elapsed() < limits::SOURCE_WRITER_PATIENCE);
    }

    fn take(&mut self, events: Vec<Event>) -> bool {
        // No events at all stand for an error, and an error for lost events.
        let mut changed = events.is_empty();
        for event in events {
            changed |= !matches!(
                event.kind,
                EventKind::Access(AccessKind::Open(_) | AccessKind::Read | AccessKind::Close(AccessMode::Read))
            );
            for path in event.paths {
                match event.kind {
                    EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                        self.writing.insert(path, Instant::now());
                    }
                    EventKind::Access(AccessKind::Close(AccessMode::Write))
                    | EventKind::Remove(_)
                    | EventKind::Modify(ModifyKind::Name(_)) => {
                        self.writing.remove(&path);
                    }
                    _ => {}
                }
            }
        }
        changed
    }
}
