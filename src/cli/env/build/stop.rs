//! Signals that end a builder.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::sandbox::SandboxError;

/// The signal that ends this process, once it has arrived.
#[derive(Debug, Clone, Default)]
pub(super) struct BuilderStop {
    number: Arc<AtomicI32>,
    arrived: Arc<Notify>,
}

impl BuilderStop {
    /// Catches SIGTERM and SIGINT from now on.
    pub(super) fn catch(runtime: &Runtime) -> anyhow::Result<Self> {
        let stop = Self::default();
        let _entered = runtime.enter();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind).context("catch signals")?;
            let stop = stop.clone();
            runtime.spawn(async move {
                while signals.recv().await.is_some() {
                    stop.number.store(kind.as_raw_value(), Ordering::Release);
                    stop.arrived.notify_one();
                }
            });
        }
        Ok(stop)
    }

    /// Whether a signal has arrived.
    pub(super) fn is_set(&self) -> bool {
        self.number.load(Ordering::Acquire) != 0
    }

    /// The error of an operation that the signal interrupts.
    pub(super) fn error(&self) -> anyhow::Error {
        SandboxError::Interrupted(self.number.load(Ordering::Acquire)).into()
    }

    /// Waits for a future, unless a signal arrives.
    pub(super) fn or<T>(&self, runtime: &Runtime, future: impl Future<Output = T>) -> anyhow::Result<T> {
        runtime.block_on(async {
            if self.is_set() {
                return Err(self.error());
            }
            tokio::select! {
                () = self.arrived.notified() => Err(self.error()),
                value = future => Ok(value),
            }
        })
    }
}
