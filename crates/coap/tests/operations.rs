//! Sequences of operations at random, with a seed that is printed.

#[path = "operations/mod.rs"]
mod operations;

fn scripts(check: impl Fn(&[u8])) {
    let seed: u64 = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64));
    println!("replay with SEED={seed}");
    let mut state = seed | 1;
    for _ in 0..3_000 {
        let script: Vec<u8> = (0..400)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        check(&script);
    }
}

#[test]
fn uploads_do_what_the_model_allows() {
    scripts(operations::uploads);
}

#[test]
fn observers_see_what_the_model_allows() {
    scripts(operations::observations);
}
