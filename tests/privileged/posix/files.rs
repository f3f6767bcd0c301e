//! Ways to the bytes of a file beside read(2), and what they say at its holes and its end.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::{BIG, BIG_LENGTH, MountedImage, STATIC, big};
use support::images::sha256;

const PAGE: usize = 4096;

fn file(path: &Path) -> File {
    File::open(path).unwrap()
}

#[expect(unsafe_code, reason = "mapping a file")]
fn map(file: &File) -> Mmap {
    // SAFETY: the file is in a read-only mount, whose content nobody can change.
    unsafe { Mmap::map(file) }.unwrap()
}

#[test]
fn mapped_file_shows_its_content_and_zeros_after_its_end() {
    let image = MountedImage::new();
    let file = file(&image.path(BIG));
    let expected = big();
    let mapped = map(&file);
    // Backwards, page by page, so that no readahead helps.
    for start in (0..BIG_LENGTH).step_by(PAGE).rev() {
        let page = start..(start + PAGE).min(BIG_LENGTH);
        assert_eq!(mapped[page.clone()], expected[page], "at {start}");
    }
    // Two mappings and a read see one and the same file; it outlives its descriptor.
    let again = map(&file);
    drop(file);
    assert_eq!(sha256(&again), sha256(&expected));
    let to_the_page = BIG_LENGTH.next_multiple_of(PAGE);
    #[expect(unsafe_code, reason = "mapping a file beyond its end")]
    // SAFETY: as above; what is looked at ends with the file's last page, which is there.
    let beyond =
        unsafe { MmapOptions::new().len(to_the_page).map(&File::open(image.path(BIG)).unwrap()) }.unwrap();
    assert!(beyond[BIG_LENGTH..].iter().all(|byte| *byte == 0));
    drop((mapped, again, beyond));
    image.mount.stop();
}

#[test]
fn private_mapping_is_writable_and_does_not_change_the_file() {
    let image = MountedImage::new();
    let file = file(&image.path(BIG));
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: the file is in a read-only mount; what is written is this mapping's own.
    let mut private = unsafe { MmapOptions::new().map_copy(&file) }.unwrap();
    private[..5].copy_from_slice(b"other");
    private[BIG_LENGTH - 1] ^= 0xff;
    assert_eq!(&private[..5], b"other");
    assert_eq!(map(&file)[..], big()[..]);
    assert_eq!(std::fs::read(image.path(BIG)).unwrap(), big());
    // Shared, it could only be written to by who has opened the file to write.
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: nothing is mapped.
    let shared = unsafe { MmapOptions::new().map_mut(&file) };
    assert_eq!(Errno::from_io_error(&shared.unwrap_err()), Some(Errno::ACCESS));
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: nothing is mapped.
    let directory = unsafe { MmapOptions::new().len(PAGE).map(&File::open(image.path("dir")).unwrap()) };
    assert_eq!(Errno::from_io_error(&directory.unwrap_err()), Some(Errno::NODEV));
    drop(private);
}

#[test]
fn executable_mapping_runs_the_program() {
    let image = MountedImage::new();
    let file = file(&image.path(STATIC));
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: the file is in a read-only mount; nothing of it is run here.
    let mapped = unsafe { MmapOptions::new().map_exec(&file) }.unwrap();
    assert_eq!(&mapped[..4], b"\x7fELF");
    drop(mapped);
}

#[test]
fn direct_reads_return_the_same_bytes() {
    let image = MountedImage::new();
    let expected = big();
    let direct =
        rustix::fs::open(image.path(BIG), OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
    let direct = File::from(direct.unwrap());
    // Whole blocks, and from the middle of one; FUSE asks for no alignment.
    for (offset, length) in
        [(0, PAGE), (PAGE, 16 * PAGE), (3, 5), (PAGE * 7 + 1, 100_000), (BIG_LENGTH - 10, 4096)]
    {
        let mut bytes = vec![0; length];
        let read = direct.read_at(&mut bytes, offset as u64).unwrap();
        let end = (offset + length).min(BIG_LENGTH);
        assert_eq!(bytes[..read], expected[offset..end], "{length} bytes at {offset}");
    }
    assert_eq!(direct.read_at(&mut [0; 16], BIG_LENGTH as u64).unwrap(), 0);
    // What is in the cache then is right as well.
    assert_eq!(std::fs::read(image.path(BIG)).unwrap(), expected);
}

#[test]
fn reads_at_the_end_are_short_and_reads_past_it_return_nothing() {
    let image = MountedImage::new();
    let file = file(&image.path(BIG));
    let length = BIG_LENGTH as u64;
    let mut bytes = [0; 100];
    for (offset, wanted) in [(length - 100, 100), (length - 1, 1), (length, 0), (length + 1, 0), (1 << 40, 0)]
    {
        assert_eq!(file.read_at(&mut bytes, offset).unwrap(), wanted, "at {offset}");
    }
    assert_eq!(rustix::io::pread(&file, &mut bytes, u64::MAX), Err(Errno::INVAL));
    assert_eq!(rustix::io::pread(&file, &mut bytes, i64::MAX as u64 - 100), Ok(0));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(-1)), Ok(length - 1));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(10)), Ok(length + 10));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(-length.cast_signed() - 1)), Err(Errno::INVAL));
    // Where it was before.
    assert_eq!(rustix::fs::tell(&file), Ok(length + 10));
    for advice in [Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::DontNeed, Advice::NoReuse] {
        rustix::fs::fadvise(&file, 0, None, advice).unwrap();
    }
    assert_eq!(std::fs::read(image.path("empty")).unwrap(), b"");
    let error = std::fs::read(image.path("dir")).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::ISDIR));
}

fn whole(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    rustix::fs::seek(&*file, SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn sendfile_copy_file_range_and_splice_copy_the_content() {
    let image = MountedImage::new();
    let (from, expected) = (file(&image.path(BIG)), big());
    let new = || tempfile::tempfile_in(image.program.dir()).unwrap();
    let mut sent = new();
    while rustix::fs::sendfile(&sent, &from, None, 1 << 20).unwrap() > 0 {}
    assert_eq!(sha256(&whole(&mut sent)), sha256(&expected));
    let (mut offset, mut part) = (5, new());
    assert_eq!(rustix::fs::sendfile(&part, &from, Some(&mut offset), 10).unwrap(), 10);
    assert_eq!((offset, whole(&mut part)), (15, expected[5..15].to_vec()));

    // Between filesystems of different kinds the kernel does not copy by itself, and says so.
    let mut copied = new();
    match rustix::fs::copy_file_range(&from, Some(&mut 0), &copied, Some(&mut 0), BIG_LENGTH) {
        Err(Errno::XDEV) => assert_eq!(whole(&mut copied), b""),
        Ok(length) => assert_eq!(whole(&mut copied), expected[..length]),
        Err(errno) => panic!("{errno}"),
    }
    assert_eq!(io::copy(&mut file(&image.path(BIG)), &mut copied).unwrap(), BIG_LENGTH as u64);
    assert_eq!(sha256(&whole(&mut copied)), sha256(&expected));

    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut spliced = Vec::new();
    let mut offset = 0;
    while spliced.len() < BIG_LENGTH {
        let length =
            rustix::pipe::splice(&from, Some(&mut offset), &writer, None, 1 << 16, SpliceFlags::empty());
        let mut piece = vec![0; length.unwrap()];
        File::from(reader.try_clone().unwrap()).read_exact(&mut piece).unwrap();
        spliced.extend(piece);
    }
    assert_eq!(sha256(&spliced), sha256(&expected));
}

/// The stretches of data, as (start, end), by SEEK_DATA and SEEK_HOLE.
fn data(file: &File) -> Vec<(u64, u64)> {
    let (mut at, mut found) = (0, Vec::new());
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        assert!(end > start, "a hole at {end} where data starts");
        found.push((start, end));
        at = end;
    }
    found
}

#[test]
fn holes_are_at_the_same_offsets_as_on_tmpfs() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    let expected = [(1 << 20, (1 << 20) + 4096), (3 << 20, (3 << 20) + 4096)];
    for root in [&image.root, disk.path()] {
        let holes = file(&root.join("holes"));
        assert_eq!(data(&holes), expected, "{}", root.display());
        for (from, found) in [
            (SeekFrom::Data((1 << 20) + 5), Ok((1 << 20) + 5)),
            (SeekFrom::Hole(5), Ok(5)),
            (SeekFrom::Hole((1 << 20) + 5), Ok((1 << 20) + 4096)),
            (SeekFrom::Data((3 << 20) + 4096), Err(Errno::NXIO)),
            (SeekFrom::Hole((4 << 20) - 1), Ok((4 << 20) - 1)),
            (SeekFrom::Hole(4 << 20), Err(Errno::NXIO)),
            (SeekFrom::Data(4 << 20), Err(Errno::NXIO)),
            (SeekFrom::Hole(1 << 60), Err(Errno::NXIO)),
        ] {
            assert_eq!(rustix::fs::seek(&holes, from), found, "{from:?} in {}", root.display());
        }
        // Without holes there is one behind the last byte.
        let whole = file(&root.join("file"));
        assert_eq!((data(&whole), rustix::fs::seek(&whole, SeekFrom::Hole(0))), (vec![(0, 5)], Ok(5)));
        let empty = file(&root.join("empty"));
        assert_eq!(rustix::fs::seek(&empty, SeekFrom::Data(0)), Err(Errno::NXIO));
        assert_eq!(rustix::fs::seek(&empty, SeekFrom::Hole(0)), Err(Errno::NXIO));
        let bytes = std::fs::read(root.join("holes")).unwrap();
        let wanted = |at| match at {
            0x10_0000..0x10_1000 => b'a',
            0x30_0000..0x30_1000 => b'b',
            _ => 0,
        };
        assert!(bytes.len() == 4 << 20 && bytes.iter().enumerate().all(|(at, byte)| *byte == wanted(at)));
    }
    image.mount.stop();
}

#[test]
fn fifo_in_an_image_connects_its_openers_and_devices_cannot_be_opened() {
    let image = MountedImage::new();
    let open = |path: &str, flags| rustix::fs::open(image.path(path), flags | OFlags::CLOEXEC, Mode::empty());
    let nonblocking = OFlags::NONBLOCK;
    assert_eq!(open("pipe", OFlags::WRONLY | nonblocking).err(), Some(Errno::NXIO));
    let reader: OwnedFd = open("pipe", OFlags::RDONLY | nonblocking).unwrap();
    let writer = open("pipe", OFlags::WRONLY | nonblocking).unwrap();
    File::from(writer).write_all(b"through").unwrap();
    let mut text = String::new();
    File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    for device in ["null", "disk"] {
        for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
            assert_eq!(open(device, flags | nonblocking).err(), Some(Errno::ACCESS), "{device} {flags:?}");
        }
        assert!(open(device, OFlags::PATH).is_ok());
    }
    image.mount.stop();
}
