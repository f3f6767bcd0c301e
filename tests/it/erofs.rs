//! The bytes of tree images.

use std::fmt::Write as _;

use rcx_imagefs::erofs::TreeImage;
use rcx_imagefs::index::Layer;
use support::layers::{merge_lines, parse};

/// A tree with every kind of inode, content and xattr.
const TREE: &str = "\
    d dir mode=700 uid=70000 mtime=-1.500000000 xattr.user.a=shared\n\
    f dir/file content\\n xattr.user.a=shared xattr.security.b=own\nf dir/empty\nh dir/name dir/file\n\
    l link dir/file mtime=7\nc null 1:3\nb disk 8:300\np pipe mode=600\n\
    ---\n\
    w dir/empty\nf implied/top xyz uid=4294967294";

/// The non-zero words of an image: 16 bytes in a line, after their offset.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (number, line) in bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0))
    {
        let _ = write!(text, "{:05x}", number * 16);
        for word in line.chunks(4) {
            text.push(' ');
            for byte in word {
                let _ = write!(text, "{byte:02x}");
            }
        }
        text.push('\n');
    }
    text
}

/// The golden file defines the format. A change of a single byte changes the tree images of all stores: increase the version
/// of tree images, then run `RCX_BLESS=1 cargo test golden` to write the file again.
#[test]
fn golden_tree_image_equals_what_the_writer_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden-erofs.txt");
    let merged = merge_lines(&parse(TREE)).unwrap();
    let indexes: Vec<_> = merged.layers.iter().map(Layer::index).collect();
    let mut bytes = Vec::new();
    let image = TreeImage::plan(&merged.tree, &indexes).unwrap();
    image.write(*b"0123456789abcdef", &mut bytes).unwrap();
    assert_eq!(image.size(), bytes.len() as u64);
    assert_eq!(image.devices().map(|(layer, _)| layer.index()).collect::<Vec<_>>(), [0, 1]);
    if std::env::var_os("RCX_BLESS").is_some() {
        std::fs::write(path, hex(&bytes)).unwrap();
    }
    assert_eq!(hex(&bytes), std::fs::read_to_string(path).unwrap());
}
