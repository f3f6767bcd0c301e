//! Work on the store that can wait: rebuilds the indexes that an older version wrote, and makes tree images and plain layers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::error::chain_text;
use crate::fs::LayerFiles;
use crate::image::LayerDigest;
use crate::pipeline::{make_plain_layer, make_tree_images, update_indexes};
use crate::store::{PlainRoom, Store};

/// Priority of the threads: the lowest that still gets some time on a busy host. They hold locks of the layers that they work on, and a
/// pull of such a layer must not wait for ever.
const NICE: i32 = 19;
/// How often to look for layers that are used.
const USE_CHECK: Duration = Duration::from_secs(5);
/// When to try again after a failure. Meanwhile, other plain layers may have become idle.
const RETRY: Duration = Duration::from_secs(10 * 60);
/// How long a plain layer must not have been used to be removed for another one. If the budget is too small for what a host uses, layers
/// would otherwise be decoded and removed in turns, for ever.
const MIN_IDLE: Duration = Duration::from_secs(60 * 60);

/// Ends a thread when it is dropped: at once if the thread waits, otherwise after the current layer.
#[derive(Debug)]
struct StopOnDrop {
    _sender: Sender<()>,
}

/// Tells a thread when to end.
struct StopSignal(Receiver<()>);

impl StopSignal {
    /// Waits; returns true if the thread should end.
    fn wait(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
    }

    fn is_set(&self) -> bool {
        self.wait(Duration::ZERO)
    }
}

/// Starts a thread of the lowest priority. `name` has at most 15 bytes.
fn start_idle(name: &'static str, work: impl FnOnce(StopSignal) + Send + 'static) -> StopOnDrop {
    let (sender, receiver) = channel();
    let started = thread::Builder::new().name(name.to_owned()).spawn(move || {
        // On Linux, this applies to the calling thread, and to the threads that it starts.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            warn!(%error, "cannot lower the priority of the thread {name}");
        }
        work(StopSignal(receiver));
    });
    if let Err(error) = started {
        warn!(%error, "cannot start the thread {name}");
    }
    StopOnDrop { _sender: sender }
}

/// A thread that rebuilds outdated indexes once, and then makes the tree images that are missing, as after an upgrade.
#[derive(Debug)]
pub(super) struct DerivedUpkeep {
    _stop: StopOnDrop,
}

impl DerivedUpkeep {
    pub(super) fn start(store: Store, tree_images: bool) -> Self {
        let work = move |stop: StopSignal| {
            let stopped = || stop.is_set();
            update_indexes(&store, &stopped);
            if tree_images {
                match store.refs() {
                    Ok(refs) => {
                        make_tree_images(&store, refs.images.iter().map(|image| image.digest), &stopped)
                    }
                    Err(error) => warn!("cannot look for missing tree images: {}", chain_text(&error)),
                }
            }
        };
        Self { _stop: start_idle("derived-upkeep", work) }
    }
}

/// A thread that makes plain layers of the lazy layers that mounts use, one after the other.
#[derive(Debug)]
pub(super) struct PlainUpkeep {
    _stop: StopOnDrop,
}

impl PlainUpkeep {
    pub(super) fn start(store: Store, files: Arc<LayerFiles>) -> Self {
        Self { _stop: start_idle("plain-upkeep", move |stop| make_plain_layers(&store, &files, &stop)) }
    }
}

fn make_plain_layers(store: &Store, files: &LayerFiles, stop: &StopSignal) {
    let room = PlainRoom { min_idle: MIN_IDLE, ..PlainRoom::default() };
    let mut failed: HashMap<LayerDigest, Instant> = HashMap::new();
    loop {
        failed.retain(|_, at| at.elapsed() < RETRY);
        for layer in files.known_layers() {
            if stop.is_set() {
                return;
            }
            // The layer of a mount that is older than the plain layer.
            if failed.contains_key(&layer) || store.has_plain(&layer).unwrap_or(false) {
                continue;
            }
            match make_plain_layer(store, &layer, room) {
                Ok(true) => info!(%layer, "made the plain layer"),
                Ok(false) => {}
                Err(error) => {
                    warn!(%layer, "cannot make the plain layer, the layer stays lazy: {}", chain_text(&error));
                    failed.insert(layer, Instant::now());
                }
            }
        }
        if stop.wait(USE_CHECK) {
            return;
        }
    }
}
