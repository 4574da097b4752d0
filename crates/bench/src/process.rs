//! What the kernel says about processes and the machine.

use std::fs;
use std::io;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

/// Clock ticks of `/proc/PID/stat` in a second: what Linux tells user space on every architecture Tidegate runs on
/// (`USER_HZ`), whatever its own tick.
const TICKS_PER_SECOND: u64 = 100;

/// One look at a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// User and system time of all threads, in milliseconds (in steps of 10).
    pub cpu_millis: u64,
    /// Resident memory, in bytes.
    pub rss: u64,
    /// The part of it that is the process's own: heap and stacks, no file pages.
    pub anonymous: u64,
    /// Context switches of the threads alive: gave the processor up.
    pub voluntary_switches: u64,
    /// Context switches of the threads alive: had it taken.
    pub involuntary_switches: u64,
}

/// Looks at process `pid`.
///
/// # Errors
///
/// There is no such process, or it ended meanwhile.
pub fn sample(pid: u32) -> io::Result<Sample> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields.split_ascii_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut sample = Sample {
        cpu_millis: ticks * (1_000 / TICKS_PER_SECOND),
        rss: field(&status, "VmRSS:") * 1_024,
        anonymous: field(&status, "RssAnon:") * 1_024,
        ..Sample::default()
    };
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread that ended since takes its switches along.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        sample.voluntary_switches += field(&status, "voluntary_ctxt_switches:");
        sample.involuntary_switches += field(&status, "nonvoluntary_ctxt_switches:");
    }
    Ok(sample)
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Processor time of this process so far, in milliseconds.
#[must_use]
pub fn own_cpu_millis() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| (usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()) as u64)
}

/// Datagrams that the kernel dropped because the receive queue of the UDP socket at `port` of this host was full.
#[must_use]
pub fn udp_drops(port: u16) -> u64 {
    let wanted = format!(":{port:04X}");
    ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| {
            table
                .lines()
                .filter(|line| line.split_ascii_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted)))
                .filter_map(|line| line.split_ascii_whitespace().last()?.parse::<u64>().ok())
                .collect::<Vec<_>>()
        })
        .sum()
}

/// What the kernel keeps for the sockets of this host, the generator's included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSockets {
    /// TCP sockets in use.
    pub tcp: u64,
    /// TCP sockets that wait for late packets (TIME-WAIT).
    pub tcp_waiting: u64,
    /// Bytes of TCP buffers.
    pub tcp_bytes: u64,
    /// UDP sockets in use.
    pub udp: u64,
    /// Bytes of UDP buffers.
    pub udp_bytes: u64,
}

/// Bytes of a page, in which the kernel counts socket memory.
const PAGE: u64 = 4_096;

/// Looks at what the kernel keeps for sockets; zeros where it does not tell.
#[must_use]
pub fn kernel_sockets() -> KernelSockets {
    let table = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let number = |protocol: &str, name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(protocol)).unwrap_or_default();
        let mut words = line.split_ascii_whitespace().skip_while(|word| *word != name);
        words.nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    KernelSockets {
        tcp: number("TCP:", "inuse"),
        tcp_waiting: number("TCP:", "tw"),
        tcp_bytes: number("TCP:", "mem") * PAGE,
        udp: number("UDP:", "inuse"),
        udp_bytes: number("UDP:", "mem") * PAGE,
    }
}

/// What a run was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor model.
    pub processor: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// What the kernel tells the time by.
    #[serde(default)]
    pub clock: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
        Machine {
            processor: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: field(&read("/proc/meminfo"), "MemTotal:") * 1_024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            clock: read("/sys/devices/system/clocksource/clocksource0/current_clocksource").trim().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sees_this_process_and_not_one_that_is_not_there() {
        let mut sum = 0u64;
        while own_cpu_millis() < 20 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let sample = sample(std::process::id()).unwrap();
        assert!(sample.rss > 100_000 && sample.anonymous > 0 && sample.anonymous <= sample.rss);
        assert!(sample.cpu_millis >= 10);
        assert_eq!(super::sample(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Machine::this().cores > 0 && Machine::this().memory > 0);
    }

    #[test]
    fn it_sees_what_a_full_receive_queue_dropped() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(udp_drops(port), 0);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100_000 {
            if udp_drops(port) > 0 {
                return;
            }
            for _ in 0..100 {
                sender.send_to(&[0; 1_000], ("127.0.0.1", port)).unwrap();
            }
        }
        panic!("a queue that nobody reads overflows");
    }
}
