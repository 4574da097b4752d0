//! The plot of a run of `cargo xtask peers`, as one SVG file that reads on light and dark pages.

use std::fmt::Write as _;

/// A measured number of one server in one scenario.
pub(super) struct Bar {
    pub(super) server: &'static str,
    pub(super) value: f64,
}

/// What one scenario shows of one number.
pub(super) struct Group {
    pub(super) scenario: String,
    pub(super) bars: Vec<Bar>,
}

/// A number of all scenarios.
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) label: fn(f64) -> String,
    pub(super) groups: Vec<Group>,
}

/// Width of a panel in its own units, and what lies left of its bars.
const WIDTH: f64 = 330.0;
const NAMES: f64 = 78.0;
/// Room for the number behind the longest bar.
const NUMBERS: f64 = 66.0;
const ROW: f64 = 17.0;
const HEADING: f64 = 24.0;
const GAP: f64 = 12.0;

const STYLE: &str = "text { font: 12px system-ui, sans-serif; fill: #1b1f24; } .title { font-weight: 600; font-size: 13px; }\n\
    .quiet { fill: #59636e; } .ours { fill: #0b66c3; } .theirs { fill: #9aa4ae; }\n\
    @media (prefers-color-scheme: dark) { text { fill: #e4e8ed; } .quiet { fill: #98a4b0; } .ours { fill: #5ba8ff; } .theirs { fill: #6b7682; } }\n";

/// Panels beside each other. Bars are on a linear scale of their own in each group, whose longest is the whole width.
pub(super) fn svg(panels: &[Panel], ours: &str) -> String {
    let height = |panel: &Panel| {
        let rows: f64 = panel.groups.iter().map(|group| HEADING + ROW * group.bars.len() as f64 + GAP).sum();
        HEADING + rows
    };
    let total = panels.iter().map(height).fold(0.0, f64::max);
    let width = WIDTH * panels.len() as f64;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\" width=\"{width}\" height=\"{total}\" role=\"img\" \
         aria-label=\"Tidegate beside its peers\">\n<style>{STYLE}</style>"
    );
    for (at, panel) in panels.iter().enumerate() {
        let left = WIDTH * at as f64;
        let _ = writeln!(out, "<text class=\"title\" x=\"{left}\" y=\"16\">{}</text>", panel.title);
        let mut y = HEADING;
        for group in &panel.groups {
            y += HEADING;
            let _ = writeln!(out, "<text class=\"quiet\" x=\"{left}\" y=\"{}\">{}</text>", y - 8.0, group.scenario);
            let most = group.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
            for bar in &group.bars {
                let length = (bar.value / most * (WIDTH - NAMES - NUMBERS)).max(1.0);
                let class = if bar.server == ours { "ours" } else { "theirs" };
                let _ = writeln!(
                    out,
                    "<text x=\"{left}\" y=\"{}\">{}</text><rect class=\"{class}\" x=\"{}\" y=\"{y}\" width=\"{length:.1}\" height=\"13\" rx=\"2\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{}</text>",
                    y + 11.0,
                    bar.server,
                    left + NAMES,
                    left + NAMES + length + 5.0,
                    y + 11.0,
                    (panel.label)(bar.value)
                );
                y += ROW;
            }
            y += GAP;
        }
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_of_a_group_is_the_whole_width_and_ours_stands_out() {
        let bars = vec![Bar { server: "a", value: 2.0 }, Bar { server: "b", value: 1.0 }];
        let groups = vec![Group { scenario: "s".to_owned(), bars }];
        let svg = svg(&[Panel { title: "t", label: |value| format!("{value:.0} ms"), groups }], "b");
        let full = WIDTH - NAMES - NUMBERS;
        assert!(svg.contains(&format!("class=\"theirs\" x=\"78\" y=\"48\" width=\"{full:.1}\"")), "{svg}");
        assert!(svg.contains(&format!("class=\"ours\" x=\"78\" y=\"65\" width=\"{:.1}\"", full / 2.0)), "{svg}");
        assert!(svg.contains(">2 ms<") && svg.ends_with("</svg>\n"));
    }
}
