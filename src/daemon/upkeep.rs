//! Work on the store that can wait: rebuilds the indexes that an older version wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tracing::warn;

use crate::pipeline::update_indexes;
use crate::store::Store;

/// Priority of the thread: the lowest that still gets some time on a busy host. The thread holds the lock of the layer that it
/// indexes, and a pull of that layer must not wait for ever.
const NICE: i32 = 19;

/// A thread that rebuilds outdated indexes once. It stops after the current layer when this is dropped.
#[derive(Debug)]
pub(super) struct IndexUpkeep {
    stop: Arc<AtomicBool>,
}

impl IndexUpkeep {
    pub(super) fn start(store: Store) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let started = thread::Builder::new().name("index-upkeep".to_owned()).spawn(move || {
            // On Linux, this applies to the calling thread, and to the threads that it starts.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                warn!(%error, "cannot lower the priority of the thread that rebuilds indexes");
            }
            update_indexes(&store, &|| stopped.load(Ordering::Relaxed));
        });
        if let Err(error) = started {
            warn!(%error, "cannot start the thread that rebuilds outdated indexes");
        }
        Self { stop }
    }
}

impl Drop for IndexUpkeep {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
