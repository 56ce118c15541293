//! Writes the access log: connections hand a line to a bounded queue and go on; one thread writes.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use crate::config::AccessLog;
use crate::preemption;

/// Lines that wait for the writer: at 500 bytes a line, 2 MB.
const QUEUE: usize = 4096;

/// How long lines gather before they are written together: a wake-up of the writer and a write for each would cost more
/// than to make the line.
const GATHER: Duration = Duration::from_millis(10);

/// The handle that connections write to.
pub(crate) struct AccessLogWriter {
    queue: Option<SyncSender<Message>>,
    dropped: Counter,
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl AccessLogWriter {
    /// Opens the log and starts its thread, which ends with the last handle.
    pub(crate) fn open(target: &AccessLog, dropped: Counter) -> io::Result<Self> {
        let output: Box<dyn Write + Send> = match target {
            AccessLog::Off => return Ok(Self { queue: None, dropped }),
            AccessLog::StandardOutput => Box::new(io::stdout()),
            // Readable by the operator's group as logs usually are; what it says is no secret.
            AccessLog::File(path) => Box::new(OpenOptions::new().create(true).append(true).mode(0o640).open(path)?),
        };
        Self::start(output, QUEUE, dropped)
    }

    fn start(output: Box<dyn Write + Send>, length: usize, dropped: Counter) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(length);
        let failed = dropped.clone();
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            preemption::never();
            write_lines(&receiver, BufWriter::with_capacity(64 * 1024, output), &failed);
        })?;
        Ok(Self { queue: Some(sender), dropped })
    }

    /// Whether anyone reads the lines: spares making them.
    pub(crate) fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues one line, which ends in a line feed; never waits.
    pub(crate) fn write(&self, line: Vec<u8>) {
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(Message::Line(line))
        {
            self.dropped.inc();
        }
    }

    /// Waits until all lines queued before are written, for at most a second.
    pub(crate) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.try_send(Message::Flush(done)).is_ok()
        {
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write_lines(queue: &Receiver<Message>, mut output: impl Write, failed: &Counter) {
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => {
                    if output.write_all(&line).is_err() {
                        failed.inc();
                    }
                }
                Message::Flush(done) => {
                    let _ = output.flush();
                    let _ = done.try_send(());
                }
            }
            next = queue.try_recv().ok();
        }
        // A full disk costs lines, never the proxy.
        let _ = output.flush();
        std::thread::sleep(GATHER);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Waits for permission before every write.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order_and_appended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        for round in 0..2 {
            let log = AccessLogWriter::open(&AccessLog::File(path.clone()), Counter::default()).unwrap();
            for number in 0..100 {
                log.write(format!("{round} {number}\n").into_bytes());
            }
            log.flush();
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 200);
        assert_eq!(text.lines().next_back(), Some("1 99"));
    }

    #[test]
    fn a_slow_reader_costs_lines_and_never_time() {
        let (_hold, wait) = mpsc::channel();
        let (out, _written) = mpsc::channel();
        let dropped = Counter::default();
        let log = AccessLogWriter::start(Box::new(Slow(wait, out)), 4, dropped.clone()).unwrap();
        // The writer holds at most one buffer of 64 KiB and the queue four lines; the rest is dropped.
        let line = vec![b'x'; 128 * 1024];
        for _ in 0..50 {
            log.write(line.clone());
        }
        assert!(dropped.get() >= 40, "{}", dropped.get());
    }

    #[test]
    fn a_log_that_can_not_be_opened_is_an_error_at_start() {
        let target = AccessLog::File("/does/not/exist/access.log".into());
        assert!(AccessLogWriter::open(&target, Counter::default()).is_err());
    }

    #[test]
    fn a_log_that_is_off_takes_nothing() {
        let log = AccessLogWriter::open(&AccessLog::Off, Counter::default()).unwrap();
        assert!(!log.is_on());
        log.write(vec![1]);
        log.flush();
    }
}
