//! Watches a store for changed references. Any process that changes them replaces or rewrites `index.json`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// A watch on a store's references. Reports every change after its creation.
#[derive(Debug)]
pub(super) struct StoreWatch {
    queue: AsyncFd<OwnedFd>,
    name: std::ffi::OsString,
}

impl StoreWatch {
    /// Watches the file at `path` through its directory. Must be called within a tokio runtime.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let (directory, name) = (path.parent().ok_or_else(invalid)?, path.file_name().ok_or_else(invalid)?);
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // CLOSE_WRITE because other tools rewrite the file in place.
        let events = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR;
        inotify::add_watch(&queue, directory, events)?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and unchanged as long as it lives.
        #[expect(unsafe_code, reason = "lets tokio wait on the inotify descriptor")]
        let queue = unsafe { AsyncFd::register(queue) }?;
        Ok(Self { queue, name: name.to_owned() })
    }

    /// Waits until the file has been written or replaced since the last call. May return without a change.
    ///
    /// # Errors
    ///
    /// The directory was removed, so no change can happen any more.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.queue.readable().await?;
            match ready.try_io(|queue| self.drain(queue.get_ref())) {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Reads all pending events, and returns whether one concerned the file. Fails with `WouldBlock` if there was no event.
    fn drain(&self, queue: &OwnedFd) -> io::Result<bool> {
        use std::os::unix::ffi::OsStrExt as _;
        // Large enough for an event with the longest name.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(queue, &mut buffer);
        let (mut any, mut changed) = (false, false);
        loop {
            match reader.next() {
                Ok(event) => {
                    any = true;
                    let named = event.file_name().is_some_and(|name| name.to_bytes() == self.name.as_bytes());
                    changed |= named || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    if event.events().contains(ReadFlags::IGNORED) {
                        return Err(io::Error::new(io::ErrorKind::NotFound, "the directory was removed"));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if any => return Ok(changed),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await.unwrap() })
    }

    #[test]
    fn only_replacing_or_rewriting_the_file_is_reported() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("index.json");
        block_on(async {
            let watch = StoreWatch::new(&path).unwrap();
            let no_change = async |watch: &StoreWatch| {
                let soon = tokio::time::timeout(Duration::from_millis(1), watch.changed()).await;
                assert!(soon.is_err());
            };
            fs::write(scratch.path().join("other.json"), "").unwrap();
            no_change(&watch).await;
            fs::write(scratch.path().join("new"), "1").unwrap();
            fs::rename(scratch.path().join("new"), &path).unwrap();
            watch.changed().await.unwrap();
            no_change(&watch).await;
            fs::write(&path, "2").unwrap();
            watch.changed().await.unwrap();
        });
    }

    #[test]
    fn removed_directory_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("store");
        fs::create_dir(&directory).unwrap();
        block_on(async {
            let watch = StoreWatch::new(&directory.join("index.json")).unwrap();
            fs::remove_dir(&directory).unwrap();
            assert!(watch.changed().await.is_err());
        });
    }
}
