//! What a caught panic said.

use std::any::Any;

/// The text of a panic's payload, if it is one: what `panic!` makes is a `&str` or a `String`.
pub fn panic_text(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_text_are_read_and_other_payloads_have_none() {
        assert_eq!(panic_text(&"plain"), Some("plain"));
        assert_eq!(panic_text(&format!("made of {}", 2)), Some("made of 2"));
        assert_eq!(panic_text(&7_u32), None);
    }
}
