//! A report as one HTML file: nothing is loaded from elsewhere, plots are inline SVG, and it reads in light and dark, in print and on a phone.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::compare::{self, Difference, shown};
use crate::report::{Outcome, Quantiles, Report};
use crate::run::{Second, micros};

mod plot;

use plot::{Plot, Scale, Series};

const STYLE: &str = include_str!("style.css");

/// Quantiles of a latency curve: its axis is the number of nines.
const CURVE: [f64; 11] = [0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999];

/// A report as a page.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut body = String::new();
    // Writing to a string does not fail.
    let _ = write_report(&mut body, report);
    page(&report.scenario, &body)
}

/// Two reports as a page.
#[must_use]
pub fn comparison(before: &Report, after: &Report) -> String {
    let mut body = String::new();
    let _ = write_comparison(&mut body, before, after);
    page(&format!("{}: before and after", after.scenario), &body)
}

fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · tidegate-bench</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Text that stands for itself in HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A whole number with its thousands apart, by a space that does not break.
fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    if number <= -0.5 { format!("−{out}") } else { out }
}

fn bytes(value: f64) -> String {
    match value {
        _ if value >= 1e9 => format!("{:.2} GB", value / 1e9),
        _ if value >= 1e6 => format!("{:.1} MB", value / 1e6),
        _ if value >= 1e4 => format!("{:.1} kB", value / 1e3),
        _ => format!("{value:.0} B"),
    }
}

/// A length of time, whose fraction is shown only where there is one.
fn seconds(value: f64) -> String {
    match (value - value.round()).abs() < 0.005 {
        true => format!("{value:.0} s"),
        false => format!("{value:.2} s"),
    }
}

/// Microseconds since 1970 as a date in UTC.
fn date(micros: u64) -> String {
    let time = i64::try_from(micros).ok().and_then(|micros| Timestamp::from_microsecond(micros).ok());
    time.map_or_else(|| "–".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

fn write_report(out: &mut String, report: &Report) -> std::fmt::Result {
    let (class, word) = match report.verdict.outcome {
        Outcome::Pass => ("pass", "pass"),
        Outcome::Void => ("void", "void"),
        Outcome::Undone => ("void", "could not be done"),
        Outcome::Fail => ("fail", "fail"),
    };
    writeln!(out, "<header>\n<h1>{} <span class=\"verdict {class}\">{word}</span></h1>", escape(&report.scenario))?;
    if !report.description.is_empty() {
        writeln!(out, "<p>{}</p>", escape(&report.description))?;
    }
    writeln!(
        out,
        "<p class=\"quiet\">{} · {} · {} · {} cores, {} · Linux {} · clock {} · run {}</p>\n</header>",
        escape(&report.target),
        date(report.started_micros),
        escape(&report.machine.processor),
        report.machine.cores,
        bytes(report.machine.memory as f64),
        escape(&report.machine.kernel),
        escape(&report.machine.clock),
        escape(&report.run)
    )?;
    if !report.verdict.reasons.is_empty() {
        writeln!(out, "<ul class=\"reasons {class}\">")?;
        for reason in &report.verdict.reasons {
            writeln!(out, "<li>{}</li>", escape(reason))?;
        }
        writeln!(out, "</ul>")?;
    }
    write_tiles(out, report)?;
    write_objectives(out, report)?;
    write_plots(out, report)?;
    write_populations(out, report)?;
    write_errors(out, report)?;
    write_audit(out, report)?;
    if let Some(ceilings) = &report.ceilings {
        writeln!(out, "<section>\n<h2>Ceilings of this machine, in the same run</h2>\n<ul>")?;
        for line in ceilings.lines(report) {
            writeln!(out, "<li>{}</li>", escape(&line))?;
        }
        writeln!(out, "</ul>\n</section>")?;
    }
    writeln!(out, "<section>\n<h2>How to read this</h2>\n<ul>")?;
    writeln!(
        out,
        "<li>{} were measured; the first {} (ramp and warm-up) are left out of the numbers and shaded in the plots.</li>",
        seconds(report.measured.seconds),
        seconds(report.load.warm_up_seconds)
    )?;
    if let Some(lateness) = &report.lateness {
        writeln!(
            out,
            "<li>Open loop: latency counts from when a message was due, whatever the server did before. The generator itself was \
             late by p50 {}, p99 {}, at most {}.</li>",
            micros(lateness.p50),
            micros(lateness.p99),
            micros(lateness.max)
        )?;
    }
    writeln!(out, "<li>Messages without an answer count with the time that they waited.</li>")?;
    for note in &report.verdict.notes {
        writeln!(out, "<li>{}</li>", escape(note))?;
    }
    writeln!(out, "</ul>\n<p class=\"quiet\">{}</p>\n</section>", escape(&report.tool))
}

fn tile(out: &mut String, name: &str, value: &str, detail: &str) -> std::fmt::Result {
    writeln!(
        out,
        "<div class=\"tile\"><div class=\"name\">{}</div><div class=\"value\">{}</div><div class=\"detail\">{}</div></div>",
        escape(name),
        escape(value),
        escape(detail)
    )
}

fn write_tiles(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<section class=\"tiles\">")?;
    let devices = f64::from(report.load.devices);
    tile(out, "devices", &thousands(devices), &format!("{} reported", thousands(f64::from(report.reported_devices))))?;
    tile(
        out,
        "acknowledged",
        &format!("{} /s", thousands(report.measured.acks_per_second)),
        &format!("{} in all", thousands(report.counts.acked as f64)),
    )?;
    let Quantiles { p50, p99, p99_99, .. } = report.latency;
    tile(out, "latency p99", &micros(p99), &format!("p50 {}, p99.99 {}", micros(p50), micros(p99_99)))?;
    if let Some(server) = &report.server {
        let idle = report.server_idle_rss.or(report.connect.as_ref().and_then(|connect| connect.server_rss_before));
        let each = idle.map(|idle| (server.rss_peak as f64 - idle as f64).max(0.0) / devices.max(1.0));
        let detail = each.map_or_else(String::new, |each| format!("{} a device", bytes(each)));
        tile(out, "server memory, peak", &bytes(server.rss_peak as f64), &detail)?;
        let detail = server
            .per_message
            .as_ref()
            .map_or_else(String::new, |each| format!("{:.2} s per million acknowledged", each.cpu_seconds_per_million));
        tile(out, "server processor", &format!("{:.2} cores", server.cores), &detail)?;
    }
    if let Some(connect) = &report.connect {
        let each =
            connect.server_cpu_micros_each.map_or_else(String::new, |each| format!("{each:.0} µs server CPU each"));
        tile(out, "connections and handshakes", &format!("{} /s", thousands(connect.per_second)), &each)?;
    }
    if let Some(sockets) = &report.kernel_sockets {
        let detail = format!("{} TCP sockets, both ends", thousands(sockets.tcp as f64));
        tile(out, "kernel socket buffers", &bytes((sockets.tcp_bytes + sockets.udp_bytes) as f64), &detail)?;
    }
    if let Some(audit) = &report.audit {
        let detail = format!("of {} acknowledged", thousands(audit.acked as f64));
        tile(out, "acknowledged and missing", &thousands(audit.acked_and_missing as f64), &detail)?;
    }
    writeln!(out, "</section>")
}

fn write_objectives(out: &mut String, report: &Report) -> std::fmt::Result {
    if report.slo.is_empty() {
        return Ok(());
    }
    writeln!(out, "<section>\n<h2>Objectives</h2>\n<div class=\"wide\"><table class=\"objectives\">")?;
    writeln!(out, "<tr><th></th><th>objective</th><th>wanted</th><th>found</th></tr>")?;
    for objective in &report.slo {
        let (class, mark) = if objective.met { ("pass", "✓") } else { ("fail", "✗") };
        writeln!(
            out,
            "<tr><td class=\"{class}\">{mark}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&objective.name),
            escape(&objective.wanted),
            escape(&objective.found)
        )?;
    }
    writeln!(out, "</table></div>\n</section>")
}

/// A latency curve: x is the number of nines.
fn curve(name: &str, quantiles: &Quantiles) -> Option<Series> {
    let histogram = quantiles.decode().filter(|histogram| !histogram.is_empty())?;
    // A quantile beyond the last value is the last value again.
    let most = 1.0 - 0.5 / histogram.len() as f64;
    let points = CURVE.iter().filter(|quantile| **quantile <= most || **quantile <= 0.9);
    Some(Series {
        name: name.to_owned(),
        points: points
            .map(|&quantile| (-(1.0 - quantile).log10(), histogram.value_at_quantile(quantile).max(1) as f64))
            .collect(),
    })
}

fn over_time(name: &str, report: &Report, value: impl Fn(&Second) -> Option<f64>) -> Series {
    let points = report.timeline.iter().filter_map(|second| Some((second.at, value(second)?))).collect();
    Series { name: name.to_owned(), points }
}

fn quantile_label(x: f64) -> String {
    let quantile = (1.0 - 10f64.powf(-x)) * 100.0;
    match x {
        _ if x < 1.5 => format!("p{quantile:.0}"),
        _ if x < 2.5 => format!("p{quantile:.1}").trim_end_matches(".0").to_owned(),
        _ if x < 3.5 => format!("p{quantile:.1}"),
        _ if x < 4.5 => format!("p{quantile:.2}"),
        _ => format!("p{quantile:.3}"),
    }
}

fn latency_plot(series: Vec<Series>) -> String {
    Plot {
        title: "Latency by percentile",
        series,
        y: Scale::Logarithmic,
        x_ticks: Some(vec![std::f64::consts::LOG10_2, 1.0, 2.0, 3.0, 4.0, 5.0]),
        x_label: quantile_label,
        y_label: |y| micros(y as u64),
        shaded: None,
    }
    .svg()
}

fn time_label(x: f64) -> String {
    match x {
        _ if x >= 600.0 => format!("{:.0} min", x / 60.0),
        _ => format!("{x:.0} s"),
    }
}

fn write_plots(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<section class=\"plots\">")?;
    let mut curves: Vec<_> =
        report.populations.iter().filter_map(|population| curve(&population.name, &population.latency)).collect();
    if curves.len() != 1 {
        curves.extend(curve("all", &report.latency).filter(|_| curves.is_empty()));
    }
    if let Some(consumer) = &report.consumer {
        curves.extend(curve("to the consumer", &consumer.latency));
    }
    for population in &report.populations {
        if let Some(delivered) = &population.delivered {
            curves.extend(curve(&format!("to {}", population.name), &delivered.latency));
        }
    }
    out.push_str(&latency_plot(curves));
    let plot = |title, series, y, y_label| {
        Plot {
            title,
            series,
            y,
            x_ticks: None,
            x_label: time_label,
            y_label,
            shaded: Some((0.0, report.load.warm_up_seconds)),
        }
        .svg()
    };
    let rates = vec![
        over_time("sent", report, |second| Some(second.messages_per_second)),
        over_time("acknowledged", report, |second| Some(second.acks_per_second)),
    ];
    out.push_str(&plot("Messages a second", rates, Scale::Linear, thousands));
    let latencies = vec![
        over_time("p50", report, |second| (second.p50_micros > 0).then_some(second.p50_micros as f64)),
        over_time("p99", report, |second| (second.p99_micros > 0).then_some(second.p99_micros as f64)),
    ];
    out.push_str(&plot("Latency over time", latencies, Scale::Logarithmic, |y| micros(y as u64)));
    if report.timeline.iter().any(|second| second.server_rss.is_some()) {
        let rss = vec![over_time("resident memory", report, |second| second.server_rss.map(|rss| rss as f64))];
        out.push_str(&plot("Server memory", rss, Scale::Linear, bytes));
        let cores = vec![over_time("cores in use", report, |second| second.server_cores)];
        out.push_str(&plot("Server processor", cores, Scale::Linear, shown));
    }
    if report.timeline.iter().any(|second| second.failed > 0) {
        let failed = vec![over_time("failed", report, |second| Some(second.failed as f64))];
        out.push_str(&plot("Messages refused, lost or given up, a second", failed, Scale::Linear, thousands));
    }
    writeln!(out, "</section>")
}

fn write_populations(out: &mut String, report: &Report) -> std::fmt::Result {
    if report.populations.is_empty() {
        return Ok(());
    }
    writeln!(out, "<section>\n<h2>Populations</h2>\n<div class=\"wide\"><table class=\"numbers populations\">")?;
    writeln!(
        out,
        "<tr><th>population</th><th>protocol</th><th>devices</th><th>period</th><th>sent</th><th>acked</th><th>failed</th>\
         <th>p50</th><th>p99</th><th>p99.9</th><th>p99.99</th><th>max</th><th>received</th></tr>"
    )?;
    for population in &report.populations {
        let c = &population.counts;
        let Quantiles { p50, p99, p99_9, p99_99, max, .. } = population.latency;
        let period = population.period_seconds.map_or_else(|| "–".to_owned(), seconds);
        let received = population.delivered.as_ref().map_or_else(String::new, |delivered| {
            let messages = thousands(delivered.messages as f64);
            match (delivered.latest, delivered.expected - delivered.acked_and_missing.min(delivered.expected)) {
                (false, _) => format!("{messages} of {}", thousands(delivered.expected as f64)),
                (true, known) => format!(
                    "{messages}; {} of {} know their latest",
                    thousands(known as f64),
                    thousands(delivered.expected as f64)
                ),
            }
        });
        write!(
            out,
            "<tr><td>{}</td><td>{} {}</td><td>{}</td><td>{period}</td><td>{}</td><td>{}</td><td>{}</td>",
            escape(&population.name),
            escape(&population.protocol),
            escape(&population.delivery),
            thousands(f64::from(population.devices)),
            thousands(c.messages as f64),
            thousands((c.acked + c.unconfirmed) as f64),
            thousands(c.failed() as f64),
        )?;
        for value in [p50, p99, p99_9, p99_99, max] {
            let shown = if population.latency.count > 0 { micros(value) } else { "–".to_owned() };
            write!(out, "<td>{shown}</td>")?;
        }
        writeln!(out, "<td>{received}</td></tr>")?;
    }
    writeln!(out, "</table></div>\n</section>")
}

fn write_errors(out: &mut String, report: &Report) -> std::fmt::Result {
    let c = &report.counts;
    let others = [
        (c.retransmissions, "sent again"),
        (c.handshakes_failed, "handshakes failed"),
        (c.handshakes_again, "handshakes of devices that had an association"),
        (c.records_dropped, "DTLS records dropped"),
        (c.observations_ended, "observations ended by the server"),
    ];
    let named = c.unserved_by_kind().into_iter().chain(c.faults_by_kind()).chain(others);
    let named = named.map(|(n, name)| (n, name.to_owned()));
    let refused = c.refused.iter().map(|(reason, n)| (*n, format!("refused with {reason}")));
    let mut kinds: Vec<(u64, String)> = refused.chain(named).filter(|(n, _)| *n > 0).collect();
    kinds.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    writeln!(out, "<section>\n<h2>Errors by kind</h2>")?;
    let Some(most) = kinds.first().map(|(n, _)| *n) else {
        return writeln!(out, "<p>None.</p>\n</section>");
    };
    writeln!(out, "<div class=\"bars\">")?;
    for (n, name) in kinds {
        // By orders of magnitude: a few among millions are still to be seen.
        let width = ((n as f64 + 1.0).log10() / (most as f64 + 1.0).log10() * 100.0).clamp(1.0, 100.0);
        writeln!(
            out,
            "<div class=\"bar\"><span>{}</span><span class=\"track\"><i style=\"width:{width:.0}%\"></i></span><b>{}</b></div>",
            escape(&name),
            thousands(n as f64)
        )?;
    }
    writeln!(out, "</div>\n</section>")
}

fn write_audit(out: &mut String, report: &Report) -> std::fmt::Result {
    let Some(audit) = &report.audit else { return Ok(()) };
    writeln!(out, "<section>\n<h2>What was stored</h2>\n<div class=\"wide\"><table class=\"numbers\">")?;
    let rows = [
        ("acknowledged", audit.acked, false),
        ("different messages found", audit.stored, false),
        ("acknowledged and missing", audit.acked_and_missing, true),
        ("stored twice", audit.stored_twice, true),
        ("damaged, or under another name", audit.corrupted, true),
        ("stored after a later one of the same device", audit.out_of_order, false),
        ("stored but never acknowledged (no fault: the ack was lost)", audit.stored_unacked, false),
        ("records of others", audit.foreign, false),
    ];
    for (name, n, is_fault) in rows {
        let class = if is_fault && n > 0 { "fail" } else { "" };
        writeln!(out, "<tr><td>{name}</td><td class=\"{class}\">{}</td></tr>", thousands(n as f64))?;
    }
    writeln!(out, "</table></div>\n</section>")
}

fn write_comparison(out: &mut String, before: &Report, after: &Report) -> std::fmt::Result {
    writeln!(out, "<header>\n<h1>{}: before and after</h1>", escape(&after.scenario))?;
    writeln!(
        out,
        "<p class=\"quiet\">{} and {}</p>\n</header>",
        date(before.started_micros),
        date(after.started_micros)
    )?;
    let cautions = compare::cautions(before, after);
    if !cautions.is_empty() {
        writeln!(out, "<ul class=\"reasons void\">")?;
        for caution in cautions {
            writeln!(out, "<li>different {}</li>", escape(&caution))?;
        }
        writeln!(out, "</ul>")?;
    }
    writeln!(out, "<section>\n<div class=\"wide\"><table class=\"numbers\">")?;
    writeln!(out, "<tr><th></th><th>before</th><th>after</th><th>change</th><th>noise</th><th></th></tr>")?;
    for row in compare::rows(before, after) {
        let percent = |value: f64| match row.before {
            0.0 => "–".to_owned(),
            before => format!("{:+.1} %", value / before * 100.0),
        };
        let class = match row.difference() {
            Difference::Better => "pass",
            Difference::Worse => "fail",
            Difference::Noise | Difference::Different => "quiet",
        };
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{}</td></tr>",
            escape(&row.name),
            shown(row.before),
            shown(row.after),
            percent(row.after - row.before),
            row.noise.map_or_else(|| "–".to_owned(), |noise| percent(noise).replace('+', "± ")),
            row.difference().word()
        )?;
    }
    writeln!(out, "</table></div>\n</section>\n<section class=\"plots\">")?;
    let curves = [curve("before", &before.latency), curve("after", &after.latency)];
    out.push_str(&latency_plot(curves.into_iter().flatten().collect()));
    let rates = vec![
        over_time("before", before, |second| Some(second.acks_per_second)),
        over_time("after", after, |second| Some(second.acks_per_second)),
    ];
    out.push_str(
        &Plot {
            title: "Acknowledged a second",
            series: rates,
            y: Scale::Linear,
            x_ticks: None,
            x_label: time_label,
            y_label: thousands,
            shaded: Some((0.0, after.load.warm_up_seconds)),
        }
        .svg(),
    );
    writeln!(out, "</section>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_400_000_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_735_689_599_000_000), "2024-12-31 23:59:59 UTC");
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let mut report = Report::new("<script>alert(1)</script>", 0, 0, &"\"&<", crate::report::Load::default());
        report.verdict.fail("<b>".to_owned());
        report.counts.refuse("<img>".to_owned());
        let page = render(&report);
        assert!(!page.contains("<script>") && !page.contains("<b>\n") && !page.contains("<img>"), "{page}");
        for from_elsewhere in ["http://", "https://", "src=", "@import"] {
            assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
        }
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(thousands(1_234_567.0), "1\u{202f}234\u{202f}567");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(-1_000.0), "−1\u{202f}000");
    }
}
