//! `pull`: from a registry into the store.

use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{Context, REFERENCE, output};
use crate::image::Reference;
use crate::pipeline::{Arrived, Pull, pull};
use crate::registry::{PlainHttp, Registry, RegistryOptions};
use crate::store::Store;

/// Fetch images from a registry, verify and index them
///
/// Prints NAME@DIGEST for each. What is in the store already is not fetched again; an interrupted download goes on where
/// it ended. `load` takes an image from a file instead.
#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// The image.
    #[arg(help = REFERENCE, required = true, value_name = "REF")]
    references: Vec<String>,
    /// Speak plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Platform to choose from a multi-platform image [default: this host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `pull --json` and `load --json` print for each image.
#[derive(Debug, Serialize)]
pub(super) struct ArrivedJson {
    name: String,
    digest: String,
    tags: Vec<String>,
    layers: usize,
    layers_fetched: usize,
    bytes_fetched: u64,
}

impl ArrivedJson {
    pub(super) fn new(context: &Context, arrived: &Arrived) -> Self {
        Self {
            name: arrived.name.familiar(context.default_registry()),
            digest: arrived.digest.to_string(),
            tags: arrived.tags.iter().map(ToString::to_string).collect(),
            layers: arrived.layers,
            layers_fetched: arrived.layers_fetched,
            bytes_fetched: arrived.bytes_fetched,
        }
    }
}

/// A runtime for the commands that talk to registries.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("async runtime")
}

pub(super) fn run(context: &Context, args: &PullArgs) -> anyhow::Result<()> {
    let platform = context.config.platform(args.platform.as_deref())?;
    let references: Vec<Reference> = args
        .references
        .iter()
        .map(|text| {
            Reference::parse(text, context.default_registry()).with_context(|| format!("pull {text}"))
        })
        .collect::<anyhow::Result<_>>()?;
    Store::exists(&context.store)?;
    let runtime = runtime()?;
    let mut arrived = Vec::new();
    let result = runtime.block_on(async {
        for (reference, text) in references.iter().zip(&args.references) {
            let plain_http = args.plain_http
                || reference
                    .name
                    .host()
                    .is_some_and(|host| context.config.plain_http.iter().any(|plain| plain == host));
            let plain_http = if plain_http { PlainHttp::Always } else { PlainHttp::Loopback };
            let options =
                RegistryOptions { plain_http, platform: platform.clone(), ..RegistryOptions::default() };
            let at = || format!("pull {text}");
            let registry = Arc::new(Registry::new(options).with_context(at)?);
            let resolved = registry.resolve(reference).await.with_context(at)?;
            // Not before there is something to store: the path of a new store may be mistyped.
            let store = context.make_store()?;
            let job = Pull { store: store.clone(), registry, progress: output::progress() };
            let one = pull(&job, reference, resolved).await.with_context(at)?;
            context.refresh(&store);
            if !args.json {
                output::line(format!("{}@{}", one.name.familiar(context.default_registry()), one.digest))?;
            }
            arrived.push(ArrivedJson::new(context, &one));
        }
        anyhow::Ok(())
    });
    // A thread that waits for another process's layer must not keep the command from ending.
    runtime.shutdown_background();
    if args.json && (result.is_ok() || !arrived.is_empty()) {
        // What came in before an error is there.
        output::json(&arrived)?;
    }
    result
}
