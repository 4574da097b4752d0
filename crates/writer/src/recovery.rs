//! What opening a log does before anything is written: every segment is checked, the last one is ended, damage is set aside.
//!
//! # Telling a torn tail from damage
//!
//! One frame is written, then synced, then the next. So a crash can leave at most one frame in part, it is the last, and nobody was
//! told that it is stored: it is cut off. That a frame is the last is known by searching everything behind it, byte by byte, for a
//! valid frame of the same segment. If there is one, or if this is not the last segment, the bytes were whole once: that is damage.
//!
//! # Damage
//!
//! The damaged file is kept in `quarantine/`. Its valid frames are copied to new segments, one for each run of records without a gap, so
//! that all segments are whole again and each record that can be read stays in its place. What is missing between them is
//! reported at every start until the segments around it are gone. A crash in the midst of it repeats it: the copies are named by
//! what they hold.
//!
//! # The page cache after a failed sync
//!
//! After a failed `fdatasync` the kernel may take pages for clean that never reached the medium: a restart reads a whole frame that a power
//! failure would still take away. Only the last frame can be such a one. It is written again and synced before it counts.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tidegate_record::{FIXED_LEN, Seq};

use crate::error::OpenError;
use crate::format::{FRAME_HEADER_LEN, HEADER_LEN, Header, HeaderError, finish_frame, is_filled, seal_frame};
use crate::frames::{Frames, Step, read_header};
use crate::log::Quarantined;
use crate::segment::{LOG_DIR, QUARANTINE_DIR, SPARE_EXTENSION, Sealed, TEMPORARY_EXTENSION, list, random};
use crate::storage::Storage;

/// Passes over the files before giving up. Each pass but the last sets one damaged file aside, which leaves whole ones in its place; a
/// log that needs more has a disk that must be replaced first.
const MAX_PASSES: usize = 4096;

/// What recovery found and left.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// The segments, whole and in order.
    pub(crate) sealed: Vec<Sealed>,
    /// Files that may be used again.
    pub(crate) spares: Vec<PathBuf>,
    /// The sequence number for the next record.
    pub(crate) next: u64,
    /// The highest epoch seen, if any.
    pub(crate) epoch: Option<u32>,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) cut_bytes: u64,
    pub(crate) quarantined: Vec<Quarantined>,
    pub(crate) gaps: Vec<(Seq, Seq)>,
}

/// Records without a gap, at these offsets of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    first: u64,
    next: u64,
    start: u64,
    end: u64,
    /// Where its last frame is.
    last_frame: u64,
}

impl Run {
    /// No records, standing for the number that comes next.
    fn empty(next: u64) -> Run {
        Run { first: next, next, start: 0, end: 0, last_frame: 0 }
    }
}

/// One file, checked.
#[derive(Debug)]
struct Scan {
    header: Result<Header, HeaderError>,
    runs: Vec<Run>,
    /// The sequence number in its seal, if it has one.
    sealed: Option<u64>,
    /// Behind the last valid frame.
    end: u64,
    len: u64,
    modified: SystemTime,
    /// First damaged byte, and what is wrong there.
    damage: Option<(u64, String)>,
    /// Of an unsealed file: why what is at `end` is not a frame.
    tail: &'static str,
    torn_bytes: u64,
}

impl Scan {
    /// The sequence number behind the last record.
    fn next(&self, first: u64) -> u64 {
        self.runs.last().map_or(first, |run| run.next)
    }
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OpenError + use<'a> {
    move |source| OpenError::Io { doing, path: path.into(), source }
}

/// Checks everything in the log's directory and leaves it whole.
pub(crate) fn recover(data: &Path, storage: &Arc<dyn Storage>, verify_sealed: bool) -> Result<Recovery, OpenError> {
    let dir = data.join(LOG_DIR);
    let mut recovery = Recovery { next: 1, ..Recovery::default() };
    recovery.spares = sort_out(&dir, storage, &mut recovery)?;
    // What an earlier pass checked needs no second look, unless its file changed.
    let mut known: HashMap<PathBuf, Arc<Scan>> = HashMap::new();
    for _ in 0..MAX_PASSES {
        let listed = list(&dir).map_err(io_error("listing", &dir))?;
        let missing: Vec<_> = listed.iter().filter(|(.., path)| !known.contains_key(path)).cloned().collect();
        let last = listed.last().map(|(.., path)| path.clone());
        for (path, scan) in scan_all(&missing, last.as_deref(), verify_sealed)? {
            recovery.bytes += scan.end;
            recovery.records += scan.runs.iter().map(|run| run.next - run.first).sum::<u64>();
            known.insert(path, Arc::new(scan));
        }
        let scans: Vec<_> = listed
            .iter()
            .map(|(first, epoch, path)| {
                let scan = known[path].clone();
                (*first, *epoch, path.clone(), scan)
            })
            .collect();
        match pass(&dir, storage, &scans, &mut recovery)? {
            Pass::Whole => return Ok(recovery),
            Pass::Changed(path) => known.retain(|p, _| *p != path && p.exists()),
        }
    }
    Err(OpenError::Io {
        doing: "recovering",
        path: dir,
        source: io::Error::other("damage is found again and again: the disk does not keep what is written to it"),
    })
}

enum Pass {
    /// All segments are whole.
    Whole,
    /// This file was set aside; look again.
    Changed(PathBuf),
}

/// Removes what was half written, finds the spares, and sets aside files that only look like segments.
fn sort_out(dir: &Path, storage: &Arc<dyn Storage>, recovery: &mut Recovery) -> Result<Vec<PathBuf>, OpenError> {
    let mut spares = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("listing", dir))? {
        let path = entry.map_err(io_error("listing", dir))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some(TEMPORARY_EXTENSION) => fs::remove_file(&path).map_err(io_error("removing", &path))?,
            Some(SPARE_EXTENSION) => spares.push(path),
            Some("seg")
                if path
                    .file_name()
                    .and_then(|n| n.to_str())
                    .is_none_or(|n| crate::format::parse_file_name(n).is_none()) =>
            {
                set_aside(dir, storage, &path, 0, "the file name is not one of this log".into(), true, recovery)?;
            }
            _ => {}
        }
    }
    spares.sort();
    let kept = dir.join(QUARANTINE_DIR);
    for entry in fs::read_dir(&kept).map_err(io_error("listing", &kept))? {
        let name = entry.map_err(io_error("listing", &kept))?.file_name();
        // Kept as `<segment name>` or `<segment name>.<n>`.
        let name = name.to_string_lossy();
        let Some(at) = name.find(".seg") else { continue };
        if let Some((_, epoch)) = crate::format::parse_file_name(&name[..at + 4]) {
            recovery.epoch = recovery.epoch.max(Some(epoch));
        }
    }
    Ok(spares)
}

/// Scans files on all cores.
fn scan_all(
    files: &[(u64, u32, PathBuf)],
    last: Option<&Path>,
    verify_sealed: bool,
) -> Result<Vec<(PathBuf, Scan)>, OpenError> {
    let turn = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((first, epoch, path)) = files.get(turn.fetch_add(1, Ordering::Relaxed)) {
                    let quick = !verify_sealed && last != Some(path);
                    let scan = scan(path, *first, *epoch, quick).map_err(io_error("reading", path));
                    done.lock().expect("no scan panics").push(scan.map(|scan| (path.clone(), scan)));
                }
            });
        }
    });
    done.into_inner().expect("no scan panics").into_iter().collect()
}

/// Checks one file; a `quick` look takes a valid seal at its end for the whole.
fn scan(path: &Path, first: u64, epoch: u32, quick: bool) -> io::Result<Scan> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut scan = Scan {
        header: Err(HeaderError::Blank),
        runs: Vec::new(),
        sealed: None,
        end: HEADER_LEN as u64,
        len: metadata.len(),
        modified: metadata.modified()?,
        damage: None,
        tail: "",
        torn_bytes: 0,
    };
    let (header, whole) = match read_header(&file)? {
        Ok(found) => found,
        Err(error) => {
            scan.damage = Some((0, error.to_string()));
            scan.header = Err(error);
            return Ok(scan);
        }
    };
    if !whole {
        scan.damage = Some((0, "one copy of the header is damaged".into()));
    } else if (header.first, header.epoch) != (first, epoch) {
        scan.damage = Some((0, format!("the header is that of {}", header.file_name())));
    }
    let mut frames = Frames::new(file, &header);
    let seed = header.seed();
    scan.header = Ok(header);

    let seal_at = scan.len.saturating_sub(FRAME_HEADER_LEN as u64);
    if quick && scan.damage.is_none() && seal_at >= HEADER_LEN as u64 {
        use std::os::unix::fs::FileExt as _;
        let mut seal = [0; FRAME_HEADER_LEN];
        frames.file().read_exact_at(&mut seal, seal_at)?;
        let next = u64::from_le_bytes(std::array::from_fn(|i| seal[8 + i]));
        if next >= first && seal == seal_frame(seed, next) {
            scan.end = scan.len;
            scan.sealed = Some(next);
            if next > first {
                scan.runs.push(Run {
                    first,
                    next,
                    start: HEADER_LEN as u64,
                    end: seal_at,
                    last_frame: HEADER_LEN as u64,
                });
            }
            return Ok(scan);
        }
    }

    let mut run: Option<Run> = None;
    loop {
        let at = frames.offset();
        match frames.step(u64::MAX)? {
            Step::Frame { base, count, records } => {
                if !is_filled(&frames.buffer()[records], count) {
                    // The checksum held, so this is what was written; the reader says which record does not decode.
                    tracing::error!(segment = %path.display(), offset = at, base, "a frame does not hold as many records as it says");
                }
                let run = run.get_or_insert(Run { first: base, next: base, start: at, end: at, last_frame: at });
                (run.next, run.end, run.last_frame) = (frames.next_seq(), frames.offset(), at);
            }
            Step::Seal => {
                scan.sealed = Some(frames.next_seq());
                break;
            }
            Step::Invalid(problem) => {
                if let Some((offset, base)) = frames.find_after(u64::MAX)? {
                    scan.damage.get_or_insert_with(|| (at, problem.into()));
                    scan.runs.extend(run.take());
                    frames.jump(offset, base);
                } else {
                    scan.tail = problem;
                    scan.torn_bytes = frames.torn_bytes()?;
                    break;
                }
            }
        }
    }
    scan.end = frames.offset();
    scan.runs.extend(run);
    Ok(scan)
}

/// One look at all files in order. Stops at the first that had to be set aside.
fn pass(
    dir: &Path,
    storage: &Arc<dyn Storage>,
    scans: &[(u64, u32, PathBuf, Arc<Scan>)],
    recovery: &mut Recovery,
) -> Result<Pass, OpenError> {
    recovery.sealed.clear();
    recovery.gaps.clear();
    for (i, (first, epoch, path, scan)) in scans.iter().enumerate() {
        recovery.epoch = recovery.epoch.max(Some(*epoch));
        let following = scans.get(i + 1);
        let Ok(header) = &scan.header else {
            if scan.header == Err(HeaderError::Blank) && following.is_none() && is_blank(path)? {
                // A file system that does not keep the order of a sync and a rename; no frame was ever in it.
                tracing::warn!(segment = %path.display(), "removing a segment that was never begun");
                fs::remove_file(path).map_err(io_error("removing", path))?;
                return Ok(Pass::Changed(path.clone()));
            }
            let (offset, problem) = scan.damage.clone().expect("a header that is none is damage");
            // Nobody knows how many records it held, so none of their numbers is given out again.
            if following.is_none() {
                let most = scan.len.saturating_sub(HEADER_LEN as u64) / FIXED_LEN as u64;
                let next = first.saturating_add(most);
                let header = Header { epoch: *epoch, first: next, salt: 0, created: 0, node: String::new() };
                let (temporary, name) = copy_run(dir, storage, path, &header, &Run::empty(next))?;
                fs::rename(&temporary, &name).map_err(io_error("renaming", &temporary))?;
            }
            set_aside(dir, storage, path, offset, problem, true, recovery)?;
            return Ok(Pass::Changed(path.clone()));
        };
        if let Some((offset, problem)) = &scan.damage {
            salvage(dir, storage, path, header, scan, *offset, problem, recovery)?;
            return Ok(Pass::Changed(path.clone()));
        }
        let next = scan.sealed.unwrap_or_else(|| scan.next(*first));
        if let Some(previous) = recovery.sealed.last()
            && *first < previous.next
        {
            let problem = format!("its records overlap those of {}", previous.path.display());
            set_aside(dir, storage, path, 0, problem, true, recovery)?;
            return Ok(Pass::Changed(path.clone()));
        }
        if let Some((following, ..)) = following
            && scan.sealed.is_none()
            && *following > next
        {
            salvage(dir, storage, path, header, scan, scan.end, scan.tail, recovery)?;
            return Ok(Pass::Changed(path.clone()));
        }
        if let Some(previous) = recovery.sealed.last()
            && *first > previous.next
        {
            recovery.gaps.push((Seq(previous.next), Seq(first - 1)));
        }
        let len = end(path, storage, header, scan, next)?;
        if scan.sealed.is_none() && following.is_none() {
            recovery.cut_bytes += scan.torn_bytes;
        }
        recovery.sealed.push(Sealed {
            path: path.clone(),
            epoch: *epoch,
            first: *first,
            next,
            len,
            ended: scan.modified,
        });
    }
    if let Some(last) = recovery.sealed.last() {
        recovery.next = recovery.next.max(last.next);
    }
    Ok(Pass::Whole)
}

fn is_blank(path: &Path) -> Result<bool, OpenError> {
    use std::io::Read as _;
    let mut file = File::open(path).map_err(io_error("opening", path))?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        match file.read(&mut chunk).map_err(io_error("reading", path))? {
            0 => return Ok(true),
            n if chunk[..n].iter().any(|b| *b != 0) => return Ok(false),
            _ => {}
        }
    }
}

/// Ends a whole segment that its writer did not: makes its last frame durable for certain, seals it, gives back the rest.
fn end(path: &Path, storage: &Arc<dyn Storage>, header: &Header, scan: &Scan, next: u64) -> Result<u64, OpenError> {
    use std::os::unix::fs::FileExt as _;
    if scan.sealed.is_some() && scan.len == scan.end {
        return Ok(scan.len);
    }
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error("opening", path))?;
    let mut len = scan.end;
    if scan.sealed.is_none() {
        let from = scan.runs.last().map_or(scan.end, |run| run.last_frame);
        let mut tail = vec![0; (scan.end - from) as usize];
        file.read_exact_at(&mut tail, from).map_err(io_error("reading", path))?;
        let seal = seal_frame(header.seed(), next);
        tail.extend_from_slice(&seal);
        len += seal.len() as u64;
        storage.write_at(&file, &tail, from).map_err(io_error("writing", path))?;
    }
    storage.sync_data(&file).map_err(io_error("syncing", path))?;
    file.set_len(len).map_err(io_error("truncating", path))?;
    storage.sync_data(&file).map_err(io_error("syncing", path))?;
    Ok(len)
}

/// Keeps a damaged file and puts whole segments with its valid frames in its place.
#[allow(clippy::too_many_arguments)]
fn salvage(
    dir: &Path,
    storage: &Arc<dyn Storage>,
    path: &Path,
    header: &Header,
    scan: &Scan,
    offset: u64,
    problem: &str,
    recovery: &mut Recovery,
) -> Result<(), OpenError> {
    let mut copies = Vec::new();
    for run in &scan.runs {
        copies.push(copy_run(dir, storage, path, header, run)?);
    }
    if let Some(next) = scan.sealed
        && next > scan.next(header.first)
    {
        // The last records are lost, their numbers are known: an empty segment keeps them from being given out again.
        copies.push(copy_run(dir, storage, path, header, &Run::empty(next))?);
    }
    let replaced = copies.iter().any(|(_, name)| name == path);
    set_aside(dir, storage, path, offset, problem.into(), false, recovery)?;
    // The last first: until the file itself is replaced, the next start does all of this again.
    for (temporary, name) in copies.iter().rev() {
        fs::rename(temporary, name).map_err(io_error("renaming", temporary))?;
    }
    if !replaced {
        fs::remove_file(path).map_err(io_error("removing", path))?;
    }
    storage.sync_dir(dir).map_err(io_error("syncing", dir))
}

/// Writes a run of the frames of `from` as a segment of its own; returns its temporary and its later name.
fn copy_run(
    dir: &Path,
    storage: &Arc<dyn Storage>,
    from: &Path,
    old: &Header,
    run: &Run,
) -> Result<(PathBuf, PathBuf), OpenError> {
    let salt = random().map_err(io_error("reading", Path::new("/dev/urandom")))?;
    let new = Header { first: run.first, salt, ..old.clone() };
    let name = dir.join(new.file_name());
    let temporary = name.with_extension(TEMPORARY_EXTENSION);
    let copy = || {
        let file = File::create(&temporary)?;
        storage.write_at(&file, &new.encode(), 0)?;
        let mut at = HEADER_LEN as u64;
        let mut frames = Frames::new(File::open(from)?, old);
        frames.jump(run.start, run.first);
        let mut copy = Vec::new();
        while frames.offset() < run.end {
            let Step::Frame { base, count, records } = frames.step(u64::MAX)? else {
                return Err(io::Error::other("a frame that was valid is not any more"));
            };
            copy.clear();
            copy.resize(FRAME_HEADER_LEN, 0);
            copy.extend_from_slice(&frames.buffer()[records]);
            finish_frame(&mut copy, new.seed(), base, count);
            storage.write_at(&file, &copy, at)?;
            at += copy.len() as u64;
        }
        storage.write_at(&file, &seal_frame(new.seed(), run.next), at)?;
        storage.sync_data(&file)
    };
    copy().map_err(io_error("copying to", &temporary))?;
    Ok((temporary, name))
}

/// Keeps `path` in quarantine, says so, and removes it from the log if nothing takes its place.
fn set_aside(
    dir: &Path,
    storage: &Arc<dyn Storage>,
    path: &Path,
    offset: u64,
    problem: String,
    remove: bool,
    recovery: &mut Recovery,
) -> Result<(), OpenError> {
    let quarantine = dir.join(QUARANTINE_DIR);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let inode = fs::metadata(path).map_err(io_error("examining", path))?.ino();
    let mut kept = quarantine.join(&*name);
    let mut n = 0;
    loop {
        match fs::hard_link(path, &kept) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // An earlier start may have been interrupted between this and the next step.
                if fs::metadata(&kept).is_ok_and(|m| m.ino() == inode) {
                    break;
                }
                n += 1;
                kept = quarantine.join(format!("{name}.{n}"));
            }
            Err(e) => return Err(io_error("keeping", path)(e)),
        }
    }
    storage.sync_dir(&quarantine).map_err(io_error("syncing", &quarantine))?;
    if remove {
        fs::remove_file(path).map_err(io_error("removing", path))?;
        storage.sync_dir(dir).map_err(io_error("syncing", dir))?;
    }
    tracing::error!(
        segment = %path.display(), kept = %kept.display(), offset, problem,
        "a segment is damaged; it is kept in quarantine, and what is valid in it stays in the log"
    );
    recovery.quarantined.push(Quarantined { path: kept, offset, problem });
    Ok(())
}
