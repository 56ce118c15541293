//! The file of the journal, and the thread that writes it.

use std::{
    collections::HashMap,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::mpsc,
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use super::{JournalError, records::Issuance, tokens::Token};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ISSUANCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("issuances");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");
const SCHEMA: u64 = 1;
/// Writes that one transaction takes; keeps the first of them from waiting for too many.
const BATCH: usize = 256;

/// Commits writes in the order in which they came.
#[derive(Debug)]
pub(super) struct Store {
    path: String,
    writer: mpsc::Sender<Order>,
}

/// What was in the file.
pub(super) struct Stored {
    pub(super) issuances: Vec<Issuance>,
    pub(super) tokens: HashMap<String, Token>,
}

/// One change.
#[derive(Debug)]
pub(super) struct Write {
    table: Table,
    key: String,
    value: Option<Vec<u8>>,
}

/// Where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Table {
    Issuances,
    Tokens,
}

#[derive(Debug)]
struct Order {
    writes: Vec<Write>,
    done: oneshot::Sender<Result<(), String>>,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<(Self, Stored), JournalError> {
        let owned = path.to_owned();
        Self::open_with(path, move || open_file(&owned))
    }

    fn open_with(
        path: &Path,
        open: impl Fn() -> Result<Database, String> + Send + 'static,
    ) -> Result<(Self, Stored), JournalError> {
        let place = path.display().to_string();
        let failed = |reason: String| JournalError::Store { path: place.clone(), reason };
        let database = open().and_then(prepare).map_err(failed)?;
        let stored = read(&database).map_err(failed)?;
        let (writer, orders) = mpsc::channel();
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write_orders(&open, database, &orders))
            .map_err(|error| failed(error.to_string()))?;
        Ok((Self { path: place, writer }, stored))
    }

    /// The writes have their place in the order when this returns, and are on the disk when its future is ready: who
    /// calls it under the lock of what is written can't be overtaken by an older state.
    pub(super) fn commit(&self, writes: Vec<Write>) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        let path = self.path.clone();
        let (done, committed) = oneshot::channel();
        // Where the writer has ended the order is dropped, and `done` with it.
        let _ = self.writer.send(Order { writes, done });
        async move {
            let ended = || Err("its writer has ended".to_owned());
            committed.await.unwrap_or_else(|_| ended()).map_err(|reason| JournalError::Store { path, reason })
        }
    }
}

impl Write {
    pub(super) fn put(table: Table, key: String, value: Vec<u8>) -> Self {
        Self { table, key, value: Some(value) }
    }

    pub(super) fn remove(table: Table, key: String) -> Self {
        Self { table, key, value: None }
    }
}

impl Table {
    const fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        match self {
            Self::Issuances => ISSUANCES,
            Self::Tokens => TOKENS,
        }
    }
}

fn open_file(path: &Path) -> Result<Database, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    // redb would make the file with the process's umask: it is made here first, readable by its owner only.
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| text(&error))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(|error| text(&error))?;
    drop(file);
    Database::create(path).map_err(|error| text(&error))
}

/// The database, of our schema and with all tables.
fn prepare(database: Database) -> Result<Database, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let transaction = database.begin_write().map_err(|error| text(&error))?;
    {
        let mut meta = transaction.open_table(META).map_err(|error| text(&error))?;
        let schema = meta.get("schema").map_err(|error| text(&error))?.map(|schema| schema.value());
        match schema {
            None => {
                meta.insert("schema", SCHEMA).map_err(|error| text(&error))?;
            }
            Some(SCHEMA) => {}
            Some(other) => {
                return Err(format!(
                    "has schema {other}, and this version reads schema {SCHEMA}: run the version that wrote it"
                ));
            }
        }
        transaction.open_table(ISSUANCES).map_err(|error| text(&error))?;
        transaction.open_table(TOKENS).map_err(|error| text(&error))?;
    }
    transaction.commit().map_err(|error| text(&error))?;
    Ok(database)
}

fn read(database: &Database) -> Result<Stored, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let transaction = database.begin_read().map_err(|error| text(&error))?;
    let mut issuances = Vec::new();
    let table = transaction.open_table(ISSUANCES).map_err(|error| text(&error))?;
    for row in table.iter().map_err(|error| text(&error))? {
        let (key, value) = row.map_err(|error| text(&error))?;
        let issuance = Issuance::decode(value.value()).map_err(|error| format!("issuance {}: {error}", key.value()))?;
        issuances.push(issuance);
    }
    let mut tokens = HashMap::new();
    let table = transaction.open_table(TOKENS).map_err(|error| text(&error))?;
    for row in table.iter().map_err(|error| text(&error))? {
        let (key, value) = row.map_err(|error| text(&error))?;
        let token = Token::decode(value.value()).map_err(|error| format!("token {}: {error}", key.value()))?;
        tokens.insert(key.value().to_owned(), token);
    }
    Ok(Stored { issuances, tokens })
}

/// redb takes nothing more after a failed write until it is opened anew: without that a disk that was full for a moment
/// would end all issuance until the next start.
fn write_orders(open: &impl Fn() -> Result<Database, String>, database: Database, orders: &mpsc::Receiver<Order>) {
    let mut database = Some(database);
    while let Ok(first) = orders.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = orders.try_recv()
        {
            batch.push(next);
        }
        let ready = database.take().map_or_else(|| open().and_then(prepare), Ok);
        let result = ready.and_then(|ready| apply(&ready, &batch).map(|()| database = Some(ready)));
        for order in batch {
            // Whoever asked may have gone away; the write stands all the same.
            let _ = order.done.send(result.clone());
        }
    }
}

fn apply(database: &Database, batch: &[Order]) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let transaction = database.begin_write().map_err(|error| text(&error))?;
    for write in batch.iter().flat_map(|order| &order.writes) {
        let mut table = transaction.open_table(write.table.definition()).map_err(|error| text(&error))?;
        match &write.value {
            Some(value) => table.insert(write.key.as_str(), value.as_slice()).map_err(|error| text(&error))?,
            None => table.remove(write.key.as_str()).map_err(|error| text(&error))?,
        };
    }
    transaction.commit().map_err(|error| text(&error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use redb::{StorageBackend, backends::FileBackend};

    use super::*;

    /// A file on a disk that can be full.
    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        full: Arc<AtomicBool>,
    }

    impl Disk {
        fn check(&self) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check().and_then(|()| self.file.set_len(len))
        }
        fn sync_data(&self) -> io::Result<()> {
            self.check().and_then(|()| self.file.sync_data())
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check().and_then(|()| self.file.write(offset, data))
        }
        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }

    #[tokio::test]
    async fn a_disk_that_was_full_for_a_moment_takes_writes_again() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("journal.redb");
        let full = Arc::new(AtomicBool::new(false));
        let (place, is_full) = (path.clone(), full.clone());
        let open = move || {
            let mut options = std::fs::OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&place).unwrap();
            let file = FileBackend::new(file).map_err(|error| error.to_string())?;
            let disk = Disk { file, full: is_full.clone() };
            redb::Builder::new().create_with_backend(disk).map_err(|error| error.to_string())
        };
        let (store, _) = Store::open_with(&path, open).unwrap();
        let write = |key: &str| vec![Write::put(Table::Tokens, key.to_owned(), vec![7; 100])];
        store.commit(write("a")).await.unwrap();
        full.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            let refused = store.commit(write("b")).await.unwrap_err().to_string();
            assert!(refused.contains("journal.redb"), "{refused}");
        }
        full.store(false, Ordering::SeqCst);
        store.commit(write("c")).await.unwrap();
    }
}
