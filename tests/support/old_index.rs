//! Layers with indexes of version 2, the former version of the format.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use rcx_imagefs::image::{Descriptor, Digest, LayerDigest, Manifest, ManifestDigest, Name};
use rcx_imagefs::index::Index;
use rcx_imagefs::store::Store;

use crate::stored::Packing;

/// A layer and what an earlier version derived from it.
pub struct OldLayer {
    packing: Packing,
    pub blob: Vec<u8>,
    pub index: Vec<u8>,
    pub seekable: Option<Vec<u8>>,
}

impl OldLayer {
    /// A gzip layer, of which most spans start inside a deflate block.
    pub fn gzip() -> Self {
        let (blob, index) = (fixture("golden.tar.gz"), fixture("version-2.tar.gz.idx"));
        Self { packing: Packing::Gzip, blob, index, seekable: None }
    }

    /// A zstd layer of one frame, which has a seekable file.
    pub fn zstd() -> Self {
        let (blob, index) = (fixture("version-2.tar.zst"), fixture("version-2.tar.zst.idx"));
        Self { packing: Packing::Zstd, blob, index, seekable: Some(fixture("version-2.tar.zst.spans")) }
    }

    pub fn digest(&self) -> LayerDigest {
        LayerDigest::new(Digest::of(&self.blob))
    }

    /// Adds an image of this layer to a store as `NAME:TAG`, with the old index.
    pub fn add_to(&self, store: &Store, reference: &str) -> ManifestDigest {
        let _lease = store.lease(None).unwrap();
        let put = |bytes: &[u8], media_type: &str| {
            let digest = Digest::of(bytes);
            store.put_small(&digest, bytes).unwrap();
            Descriptor::new(media_type, digest, bytes.len() as u64)
        };
        let layer = put(&self.blob, self.packing.media_type());
        let diff_id = *Index::open(&self.index[..]).unwrap().diff_id();
        let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}}).to_string();
        let config = put(config.as_bytes(), rcx_imagefs::image::media::OCI_CONFIG);
        let manifest = Manifest::new(config, vec![layer]).unwrap();
        let descriptor = put(&manifest.to_bytes(), manifest.media_type());
        if let Some(bytes) = &self.seekable {
            let mut file = store.create_seekable(&self.digest()).unwrap();
            file.write_all(bytes).unwrap();
            file.commit().unwrap();
        }
        store.put_index(&self.digest(), &self.index).unwrap();
        let (name, tag) = reference.rsplit_once(':').unwrap();
        store
            .tag(&Name::from_archive(name).unwrap(), Some(&tag.parse().unwrap()), &descriptor, None)
            .unwrap();
        ManifestDigest::from(&descriptor)
    }

    /// The version of the index that the store has now.
    pub fn version_in(&self, store: &Store) -> u32 {
        let index = fs::read(store.index_path(&self.digest())).unwrap();
        u32::from_le_bytes(index[8..12].try_into().unwrap())
    }
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)).unwrap()
}
