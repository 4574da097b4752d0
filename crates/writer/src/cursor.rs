//! Cursor.
use crate::CursorError;
use std::ops::RangeInclusive;
use tidegate_record::Seq;

pub(crate) fn check_name(name: &str) -> Result<(), CursorError> {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(ok) {
        return Err(CursorError::Name(name.into()));
    }
    Ok(())
}

/// How far a sink has come, durably.
#[derive(Debug)]
pub struct Cursor {}

impl Cursor {
    /// All up to here is delivered.
    #[must_use]
    pub fn position(&self) -> Seq {
        unimplemented!()
    }

    /// What was about to be delivered and may have been, in part or whole; it must be repeated exactly.
    #[must_use]
    pub fn plan(&self) -> Option<RangeInclusive<u64>> {
        unimplemented!()
    }

    /// Writes durably that `first..=last` is about to be delivered.
    pub fn set_plan(&mut self, first: Seq, last: Seq) -> Result<(), CursorError> {
        let _ = (first, last);
        unimplemented!()
    }

    /// Writes durably that all up to `last` is delivered; the plan is done.
    pub fn advance(&mut self, last: Seq) -> Result<(), CursorError> {
        let _ = last;
        unimplemented!()
    }
}
