//! Progress bars of `pull`, `load`, `push`, `copy` and `verify --repair`.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::image::LayerDigest;
use crate::os::ignore_poison;
use crate::pipeline::{ProgressEvent, ProgressSink};

/// Longest name that a bar shows, in characters.
const NAME_MAX: usize = 40;

/// Shows on stderr, if that is a terminal, a bar for the image with its size and rate, and below it one for each layer.
pub(super) fn bars(image: &str) -> ProgressSink {
    if !std::io::stderr().is_terminal() {
        return ProgressSink::none();
    }
    let bars = Mutex::new(ImageBars::new(image, ProgressDrawTarget::stderr()));
    ProgressSink::new(move |event| ignore_poison(bars.lock()).show(event))
}

/// The bars of an image. They disappear when they are dropped.
struct ImageBars {
    all: MultiProgress,
    /// The bar of the whole image, and its length so far.
    image: ProgressBar,
    layers: HashMap<LayerDigest, ProgressBar>,
    style: ProgressStyle,
}

impl ImageBars {
    fn new(image: &str, target: ProgressDrawTarget) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let style = |template: &str| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let name: String = super::output::plain(image).chars().take(NAME_MAX).collect();
        let bar = ProgressBar::new(0).with_prefix(name).with_style(style(
            "{prefix} {wide_bar:.green/dim} {binary_bytes:>11}/{binary_total_bytes:<11} {binary_bytes_per_sec:>13}",
        ));
        Self {
            image: all.add(bar),
            all,
            layers: HashMap::new(),
            style: style(
                "{prefix:>19} {wide_bar:.cyan/dim} {binary_bytes:>11}/{binary_total_bytes:<11} {msg}",
            ),
        }
    }

    fn show(&mut self, event: ProgressEvent) {
        match event {
            ProgressEvent::Image { size } => self.image.inc_length(size),
            ProgressEvent::Layer { digest, size } => {
                let short: String = digest.hex().chars().take(12).collect();
                let bar = ProgressBar::new(size).with_style(self.style.clone()).with_prefix(short);
                self.layers.insert(digest, self.all.add(bar));
            }
            ProgressEvent::Bytes { digest, total } => {
                if let Some(bar) = self.layers.get(&digest) {
                    // A push may send bytes again.
                    let total = total.max(bar.position());
                    self.image.inc(total.saturating_sub(bar.position()));
                    bar.set_position(total);
                }
            }
            ProgressEvent::Waiting { digest } => self.message(&digest, "another process is fetching it"),
            ProgressEvent::Rebuilding { digest } => self.message(&digest, "rebuilding its index"),
            ProgressEvent::Done { digest } => {
                if let Some(bar) = self.layers.remove(&digest) {
                    // A layer that the store had already counts as a whole.
                    self.image.inc(bar.length().unwrap_or(0).saturating_sub(bar.position()));
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn message(&self, layer: &LayerDigest, message: &'static str) {
        if let Some(bar) = self.layers.get(layer) {
            bar.set_message(message);
        }
    }
}

impl Drop for ImageBars {
    fn drop(&mut self) {
        self.image.finish_and_clear();
        self.layers.values().for_each(ProgressBar::finish_and_clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn bar_of_the_image_counts_all_layers_whether_they_are_fetched_or_stored() {
        let mut bars = ImageBars::new("lab/a:1", ProgressDrawTarget::hidden());
        let [one, two] = ["one", "two"].map(|text| LayerDigest::new(Digest::of(text.as_bytes())));
        bars.show(ProgressEvent::Image { size: 150 });
        bars.show(ProgressEvent::Layer { digest: one, size: 100 });
        bars.show(ProgressEvent::Layer { digest: two, size: 50 });
        bars.show(ProgressEvent::Bytes { digest: one, total: 30 });
        bars.show(ProgressEvent::Bytes { digest: one, total: 40 });
        assert_eq!((bars.image.position(), bars.image.length()), (40, Some(150)));
        bars.show(ProgressEvent::Done { digest: two });
        assert_eq!(bars.image.position(), 90);
        bars.show(ProgressEvent::Bytes { digest: one, total: 100 });
        bars.show(ProgressEvent::Done { digest: one });
        assert_eq!(bars.image.position(), 150);
    }
}
