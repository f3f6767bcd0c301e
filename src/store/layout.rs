//! Opening and creating a store: the directories and files that make one.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::dir::{self, Dir, Temp, read_bounded};
use super::error::{At as _, StoreError};
use super::{Inner, Store, slots};
use crate::index::LayerLimits;

pub(super) const INDEX_JSON: &str = "index.json";
pub(super) const BLOBS: &str = "blobs";
pub(super) const SHA256: &str = "sha256";
const OCI_LAYOUT: &str = "oci-layout";
const OCI_LAYOUT_VERSION: &str = "1.0.0";
/// The directory beside the layout.
const TOP: &str = "rcx-imagefs";
const VERSION_FILE: &str = "version";
/// In `rcx-imagefs`, the directory of roots.
const ROOTS: &str = "roots";
/// Of unpacked layers, in the same directory.
const LAYERS: &str = "layers";
/// In `rcx-imagefs`, the directory of boxes.
const BOXES: &str = "boxes";
/// Format of the directory `rcx-imagefs`. Changes when an older program would misread what a newer one writes there.
const VERSION: &str = "1";

/// What the file `index.json` of an empty layout holds (image-spec, image-index.md).
const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// Mode of directories that others may read.
const DIR_MODE: u32 = 0o755;
/// Mode of files that others may read.
pub(super) const FILE_MODE: u32 = 0o644;

/// The directories below `rcx-imagefs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Derived {
    Indexes,
    Seekable,
    Partial,
    Tmp,
    Locks,
}

impl Derived {
    fn name(self) -> &'static str {
        match self {
            Self::Indexes => "indexes",
            Self::Seekable => "seekable",
            Self::Partial => "partial",
            Self::Tmp => "tmp",
            Self::Locks => "locks",
        }
    }

    fn mode(self) -> u32 {
        match self {
            Self::Indexes | Self::Seekable => DIR_MODE,
            Self::Partial | Self::Tmp | Self::Locks => 0o700,
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct OciLayout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Store {
    /// Opens a store that is there. Any OCI image layout is one; nothing is written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).at("make absolute", path)?;
        let root = Dir::open(&path)?;
        if !check_layout(&root)? {
            return Err(match root.names()?.is_empty() {
                true => StoreError::Missing { path },
                false => StoreError::NotAStore { path },
            });
        }
        if let Some(top) = root.sub(TOP)? {
            check_version(&top)?;
        }
        let inner = Inner { path, slots: Mutex::new(slots::Table::default()) };
        Ok(Self { inner: Arc::new(inner), layer_limits: LayerLimits::default() })
    }

    /// Whether a store is there; an error where something else is. Writes nothing.
    pub fn exists(path: &Path) -> Result<bool, StoreError> {
        let path = std::path::absolute(path).at("make absolute", path)?;
        match Dir::open(&path) {
            Ok(root) => is_made(&root, &path),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a store, and makes one where the directory is missing or empty; any number of processes may do so at once.
    ///
    /// Removes what dead writers left under `tmp`.
    pub fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).at("make absolute", path)?;
        make_dir_all(&path)?;
        let root = Dir::open(&path)?;
        if !is_made(&root, &path)? {
            create(&root)?;
        }
        let store = Self::open(&path)?;
        dir::sweep(&store.derived(Derived::Tmp)?, false)?;
        Ok(store)
    }

    /// Where roots keep what is written in them, unless they are told another place. Only its parent is made here: it is
    /// no part of the store, and `gc` knows nothing of it.
    pub fn roots_path(&self) -> Result<PathBuf, StoreError> {
        Ok(self.top()?.path_of(ROOTS))
    }

    /// Where unpacked layers are. Only its parent is made here, and `gc` leaves it alone: which layers are in use is known
    /// to those who make roots.
    pub fn layers_path(&self) -> Result<PathBuf, StoreError> {
        Ok(self.top()?.path_of(LAYERS))
    }

    /// Where the boxes of runs are that no sandbox makes itself. As [`Store::roots_path`], it is no part of the store.
    pub fn boxes_path(&self) -> Result<PathBuf, StoreError> {
        Ok(self.top()?.path_of(BOXES))
    }

    /// Where a derived file is, or would be: for messages.
    pub(super) fn derived_path(&self, derived: Derived, name: &str) -> PathBuf {
        [self.path(), TOP.as_ref(), derived.name().as_ref(), name.as_ref()].iter().collect()
    }

    /// The store's own directory.
    pub(super) fn root(&self) -> Result<Dir, StoreError> {
        Dir::open(self.path())
    }

    /// `blobs/sha256`; `None` in a layout that has no blob yet.
    pub(super) fn blobs(&self) -> Result<Option<Dir>, StoreError> {
        match self.root()?.sub(BLOBS)? {
            Some(blobs) => blobs.sub(SHA256),
            None => Ok(None),
        }
    }

    /// `blobs/sha256`, made where it is missing.
    pub(super) fn make_blobs(&self) -> Result<Dir, StoreError> {
        self.root()?.make_sub(BLOBS, DIR_MODE)?.make_sub(SHA256, DIR_MODE)
    }

    /// `rcx-imagefs`; `None` where nothing has been derived yet.
    pub(super) fn existing_top(&self) -> Result<Option<Dir>, StoreError> {
        self.root()?.sub(TOP)
    }

    /// `rcx-imagefs`, made where it is missing.
    pub(super) fn top(&self) -> Result<Dir, StoreError> {
        make_top(&self.root()?)
    }

    /// A directory of derived files; `None` where it is missing.
    pub(super) fn existing(&self, derived: Derived) -> Result<Option<Dir>, StoreError> {
        match self.existing_top()? {
            Some(top) => top.sub(derived.name()),
            None => Ok(None),
        }
    }

    /// A directory of derived files, made where it is missing.
    pub(super) fn derived(&self, derived: Derived) -> Result<Dir, StoreError> {
        self.top()?.make_sub(derived.name(), derived.mode())
    }

    /// Starts a file that will be `name` in `target`.
    pub(super) fn temp(&self, target: Dir, name: &str) -> Result<Temp, StoreError> {
        Temp::new(self.derived(Derived::Tmp)?, target, name, FILE_MODE)
    }
}

/// Whether the directory is a store's; false where it can become one.
fn is_made(root: &Dir, path: &Path) -> Result<bool, StoreError> {
    if check_layout(root)? {
        return Ok(true);
    }
    // The first thing that creation makes is `rcx-imagefs` and the last is `oci-layout`, so one without the other is
    // another process that is creating, or was. A file system of its own has `lost+found`.
    let names = root.names()?;
    if names.iter().all(|name| name == "lost+found") || names.iter().any(|name| name == TOP) {
        return Ok(false);
    }
    Err(StoreError::NotAStore { path: path.to_owned() })
}

/// Whether the directory has an `oci-layout` file, of a version that this program knows.
fn check_layout(root: &Dir) -> Result<bool, StoreError> {
    let Some(file) = root.file(OCI_LAYOUT)? else { return Ok(false) };
    let path = root.path_of(OCI_LAYOUT);
    let layout: OciLayout = serde_json::from_slice(&read_bounded(&file, &path, 4096)?)
        .map_err(|source| StoreError::Json { path: path.clone(), source })?;
    match layout.version == OCI_LAYOUT_VERSION {
        true => Ok(true),
        false => Err(StoreError::Version { path, found: layout.version, known: OCI_LAYOUT_VERSION }),
    }
}

/// Refuses a directory `rcx-imagefs` of another format. Without the file it is one that is being made.
fn check_version(top: &Dir) -> Result<bool, StoreError> {
    let Some(file) = top.file(VERSION_FILE)? else { return Ok(false) };
    let path = top.path_of(VERSION_FILE);
    let bytes = read_bounded(&file, &path, 4096)?;
    let found = String::from_utf8_lossy(&bytes).trim().to_owned();
    match found == VERSION {
        true => Ok(true),
        false => Err(StoreError::Version { path, found, known: VERSION }),
    }
}

/// Makes a layout without images. Each step may have been done by another process.
fn create(root: &Dir) -> Result<(), StoreError> {
    make_top(root)?;
    root.make_sub(BLOBS, DIR_MODE)?.make_sub(SHA256, DIR_MODE)?;
    put_if_missing(root, root, INDEX_JSON, EMPTY_INDEX)?;
    let layout = OciLayout { version: OCI_LAYOUT_VERSION.to_owned() };
    let layout = serde_json::to_vec(&layout).expect("a struct of strings has a JSON form");
    put_if_missing(root, root, OCI_LAYOUT, &layout)
}

/// Opens `rcx-imagefs`, of the format that this program knows, and makes it first where it is missing.
fn make_top(root: &Dir) -> Result<Dir, StoreError> {
    let top = root.make_sub(TOP, DIR_MODE)?;
    if !check_version(&top)? {
        put_if_missing(root, &top, VERSION_FILE, format!("{VERSION}\n").as_bytes())?;
        check_version(&top)?;
    }
    Ok(top)
}

fn put_if_missing(root: &Dir, target: &Dir, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = target.path_of(name);
    let tmp = root.make_sub(TOP, DIR_MODE)?.make_sub(Derived::Tmp.name(), Derived::Tmp.mode())?;
    let mut temp = Temp::new(tmp, target.reopen()?, name, FILE_MODE)?;
    temp.write_all(bytes).map_err(|error| StoreError::from_write(&path, error))?;
    temp.commit_if_missing()?;
    Ok(())
}

/// Makes a directory with its parents, durably.
fn make_dir_all(path: &Path) -> Result<(), StoreError> {
    // Also a symlink to nowhere is "there": opening it then tells.
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_dir_all(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StoreError::io("make", path, error)),
        Ok(()) => match parent {
            Some(parent) => Dir::open(parent)?.sync(),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn reopen(path: &Path) -> Result<Store, StoreError> {
        Store::open(path)?;
        Store::open_or_create(path)
    }

    #[test]
    fn sixteen_creators_at_once_all_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/store");
        std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..16).map(|_| scope.spawn(|| Store::open_or_create(&path).map(drop))).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        let store = Store::open(&path).unwrap();
        assert_eq!(fs::read(store.index_json_path()).unwrap(), EMPTY_INDEX);
        assert!(store.derived(Derived::Tmp).unwrap().names().unwrap().is_empty());
    }

    #[test]
    fn missing_and_foreign_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Store::open(&dir.path().join("no")), Err(StoreError::Missing { .. })));
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Missing { .. })));
        assert!(!Store::exists(&dir.path().join("no")).unwrap());
        assert!(!Store::exists(dir.path()).unwrap());
        fs::write(dir.path().join("diary.txt"), "private").unwrap();
        assert!(matches!(Store::exists(dir.path()), Err(StoreError::NotAStore { .. })));
        assert!(matches!(Store::open(dir.path()), Err(StoreError::NotAStore { .. })));
        assert!(matches!(Store::open_or_create(dir.path()), Err(StoreError::NotAStore { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let file = dir.path().join("diary.txt");
        assert!(matches!(Store::open_or_create(&file), Err(StoreError::NotPlain { .. })));
    }

    #[test]
    fn an_interrupted_creation_is_completed() {
        let whole = tempfile::tempdir().unwrap();
        Store::open_or_create(whole.path()).unwrap();
        // Each step's state: what the steps after it make is not there.
        for missing in [
            &["oci-layout"][..],
            &["oci-layout", "index.json"],
            &["oci-layout", "index.json", "blobs"],
            &["oci-layout", "index.json", "blobs", "rcx-imagefs/version"],
        ] {
            let dir = tempfile::tempdir().unwrap();
            Store::open_or_create(dir.path()).unwrap();
            for name in missing {
                let path = dir.path().join(name);
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
            Store::open_or_create(dir.path()).unwrap();
            reopen(dir.path()).unwrap();
            assert_eq!(fs::read(dir.path().join(INDEX_JSON)).unwrap(), EMPTY_INDEX);
        }
    }

    #[test]
    fn a_missing_index_json_is_not_replaced_by_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        fs::remove_file(store.index_json_path()).unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        assert!(!store.index_json_path().exists());
    }

    #[test]
    fn unknown_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Store::open_or_create(dir.path()).unwrap();
        fs::write(dir.path().join("rcx-imagefs/version"), "2\n").unwrap();
        let error = reopen(dir.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Version { found, .. } if found == "2"), "{error:?}");
        fs::write(dir.path().join("rcx-imagefs/version"), "1\n").unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
        assert!(matches!(reopen(dir.path()), Err(StoreError::Version { .. })));
        fs::write(dir.path().join("oci-layout"), "{").unwrap();
        assert!(matches!(reopen(dir.path()), Err(StoreError::Json { .. })));
    }

    #[test]
    fn derived_directories_are_never_reached_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let indexes = dir.path().join("rcx-imagefs/indexes");
        symlink(elsewhere.path(), &indexes).unwrap();
        assert!(matches!(store.derived(Derived::Indexes), Err(StoreError::NotPlain { .. })));
        fs::remove_file(&indexes).unwrap();
        store.derived(Derived::Indexes).unwrap();
    }

    #[test]
    fn unverified_bytes_and_locks_are_not_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        for derived in [Derived::Partial, Derived::Tmp, Derived::Locks] {
            store.derived(derived).unwrap();
            let path = dir.path().join(TOP).join(derived.name());
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn leftovers_of_dead_writers_are_swept_and_live_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let tmp = dir.path().join("rcx-imagefs/tmp");
        fs::write(tmp.join("1-0-index.json"), "{\"schema").unwrap();
        let mut live = store.temp(store.root().unwrap(), "live").unwrap();
        live.write_all(b"half").unwrap();
        Store::open_or_create(dir.path()).unwrap();
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 1);
        live.commit().unwrap();
        assert_eq!(fs::read(dir.path().join("live")).unwrap(), b"half");
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    }
}
