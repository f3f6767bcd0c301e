//! Access to the content of a file other than by read(2): mmap, direct reads, sendfile, splice, holes and the end of the file.

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
    // SAFETY: the file is in a read-only mount, so its content cannot change.
    unsafe { Mmap::map(file) }.unwrap()
}

#[test]
fn mapped_file_shows_its_content_and_zeros_after_its_end() {
    let image = MountedImage::new();
    let file = file(&image.path(BIG));
    let expected = big();
    let mapped = map(&file);
    // Backwards, page by page, so that no readahead happens.
    for start in (0..BIG_LENGTH).step_by(PAGE).rev() {
        let page = start..(start + PAGE).min(BIG_LENGTH);
        assert_eq!(mapped[page.clone()], expected[page], "at {start}");
    }
    // A second mapping sees the same content. A mapping outlives its descriptor.
    let again = map(&file);
    drop(file);
    assert_eq!(sha256(&again), sha256(&expected));
    let mapped_length = BIG_LENGTH.next_multiple_of(PAGE);
    #[expect(unsafe_code, reason = "mapping a file beyond its end")]
    // SAFETY: as above; the accessed bytes end with the last page of the file, which exists.
    let beyond =
        unsafe { MmapOptions::new().len(mapped_length).map(&File::open(image.path(BIG)).unwrap()) }.unwrap();
    assert!(beyond[BIG_LENGTH..].iter().all(|byte| *byte == 0));
    drop((mapped, again, beyond));
    image.mount.stop();
}

#[test]
fn private_mapping_is_writable_and_does_not_change_the_file() {
    let image = MountedImage::new();
    let file = file(&image.path(BIG));
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: the file is in a read-only mount; writes go to this private mapping only.
    let mut private = unsafe { MmapOptions::new().map_copy(&file) }.unwrap();
    private[..5].copy_from_slice(b"other");
    private[BIG_LENGTH - 1] ^= 0xff;
    assert_eq!(&private[..5], b"other");
    assert_eq!(map(&file)[..], big()[..]);
    assert_eq!(std::fs::read(image.path(BIG)).unwrap(), big());
    // A writable shared mapping requires a descriptor that is open for writing.
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: the call fails and maps nothing.
    let shared = unsafe { MmapOptions::new().map_mut(&file) };
    assert_eq!(Errno::from_io_error(&shared.unwrap_err()), Some(Errno::ACCESS));
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: the call fails and maps nothing.
    let directory = unsafe { MmapOptions::new().len(PAGE).map(&File::open(image.path("dir")).unwrap()) };
    assert_eq!(Errno::from_io_error(&directory.unwrap_err()), Some(Errno::NODEV));
    drop(private);
}

#[test]
fn executable_mapping_runs_the_program() {
    let image = MountedImage::new();
    let file = file(&image.path(STATIC));
    #[expect(unsafe_code, reason = "mapping a file")]
    // SAFETY: the file is in a read-only mount; the mapped code is not executed.
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
    // Aligned and unaligned reads: FUSE requires no alignment.
    for (offset, length) in
        [(0, PAGE), (PAGE, 16 * PAGE), (3, 5), (PAGE * 7 + 1, 100_000), (BIG_LENGTH - 10, 4096)]
    {
        let mut bytes = vec![0; length];
        let read = direct.read_at(&mut bytes, offset as u64).unwrap();
        let end = (offset + length).min(BIG_LENGTH);
        assert_eq!(bytes[..read], expected[offset..end], "{length} bytes at {offset}");
    }
    assert_eq!(direct.read_at(&mut [0; 16], BIG_LENGTH as u64).unwrap(), 0);
    // The page cache has the correct content afterwards.
    assert_eq!(std::fs::read(image.path(BIG)).unwrap(), expected);
}

#[test]
fn reads_at_the_end_are_short_and_reads_past_it_return_nothing() {
    let image = MountedImage::new();
    let file = file(&image.path(BIG));
    let length = BIG_LENGTH as u64;
    let mut bytes = [0; 100];
    for (offset, expected) in
        [(length - 100, 100), (length - 1, 1), (length, 0), (length + 1, 0), (1 << 40, 0)]
    {
        assert_eq!(file.read_at(&mut bytes, offset).unwrap(), expected, "at {offset}");
    }
    assert_eq!(rustix::io::pread(&file, &mut bytes, u64::MAX), Err(Errno::INVAL));
    assert_eq!(rustix::io::pread(&file, &mut bytes, i64::MAX as u64 - 100), Ok(0));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(-1)), Ok(length - 1));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(10)), Ok(length + 10));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(-length.cast_signed() - 1)), Err(Errno::INVAL));
    // The failed seek does not move the offset.
    assert_eq!(rustix::fs::tell(&file), Ok(length + 10));
    for advice in [Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::DontNeed, Advice::NoReuse] {
        rustix::fs::fadvise(&file, 0, None, advice).unwrap();
    }
    assert_eq!(std::fs::read(image.path("empty")).unwrap(), b"");
    let error = std::fs::read(image.path("dir")).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::ISDIR));
}

fn read_all(file: &mut File) -> Vec<u8> {
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
    assert_eq!(sha256(&read_all(&mut sent)), sha256(&expected));
    let (mut offset, mut part) = (5, new());
    assert_eq!(rustix::fs::sendfile(&part, &from, Some(&mut offset), 10).unwrap(), 10);
    assert_eq!((offset, read_all(&mut part)), (15, expected[5..15].to_vec()));

    // The kernel may refuse copy_file_range between filesystems of different types with EXDEV.
    let mut copied = new();
    match rustix::fs::copy_file_range(&from, Some(&mut 0), &copied, Some(&mut 0), BIG_LENGTH) {
        Err(Errno::XDEV) => assert_eq!(read_all(&mut copied), b""),
        Ok(length) => assert_eq!(read_all(&mut copied), expected[..length]),
        Err(errno) => panic!("{errno}"),
    }
    assert_eq!(io::copy(&mut file(&image.path(BIG)), &mut copied).unwrap(), BIG_LENGTH as u64);
    assert_eq!(sha256(&read_all(&mut copied)), sha256(&expected));

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

/// The data ranges as (start, end), from SEEK_DATA and SEEK_HOLE.
fn data_ranges(file: &File) -> Vec<(u64, u64)> {
    let (mut at, mut ranges) = (0, Vec::new());
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        assert!(end > start, "SEEK_HOLE from {start} returned {end}");
        ranges.push((start, end));
        at = end;
    }
    ranges
}

#[test]
fn holes_are_at_the_same_offsets_as_on_tmpfs() {
    let image = MountedImage::new();
    let disk = image.on_tmpfs();
    let expected = [(1 << 20, (1 << 20) + 4096), (3 << 20, (3 << 20) + 4096)];
    for root in [&image.root, disk.path()] {
        let holes = file(&root.join("holes"));
        assert_eq!(data_ranges(&holes), expected, "{}", root.display());
        for (from, expected) in [
            (SeekFrom::Data((1 << 20) + 5), Ok((1 << 20) + 5)),
            (SeekFrom::Hole(5), Ok(5)),
            (SeekFrom::Hole((1 << 20) + 5), Ok((1 << 20) + 4096)),
            (SeekFrom::Data((3 << 20) + 4096), Err(Errno::NXIO)),
            (SeekFrom::Hole((4 << 20) - 1), Ok((4 << 20) - 1)),
            (SeekFrom::Hole(4 << 20), Err(Errno::NXIO)),
            (SeekFrom::Data(4 << 20), Err(Errno::NXIO)),
            (SeekFrom::Hole(1 << 60), Err(Errno::NXIO)),
        ] {
            assert_eq!(rustix::fs::seek(&holes, from), expected, "{from:?} in {}", root.display());
        }
        // A file without holes has one implicit hole at its end.
        let plain = file(&root.join("file"));
        assert_eq!((data_ranges(&plain), rustix::fs::seek(&plain, SeekFrom::Hole(0))), (vec![(0, 5)], Ok(5)));
        let empty = file(&root.join("empty"));
        assert_eq!(rustix::fs::seek(&empty, SeekFrom::Data(0)), Err(Errno::NXIO));
        assert_eq!(rustix::fs::seek(&empty, SeekFrom::Hole(0)), Err(Errno::NXIO));
        let bytes = std::fs::read(root.join("holes")).unwrap();
        let expected_byte = |at| match at {
            0x10_0000..0x10_1000 => b'a',
            0x30_0000..0x30_1000 => b'b',
            _ => 0,
        };
        assert!(
            bytes.len() == 4 << 20 && bytes.iter().enumerate().all(|(at, byte)| *byte == expected_byte(at))
        );
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
