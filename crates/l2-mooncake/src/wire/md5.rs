//! MD5 (RFC 1321), which Mooncake's libraries name functions and types by. Not for anything that has to be safe.

const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// The first four bytes of the digest, as a big-endian number.
pub(crate) fn first32(text: &[u8]) -> u32 {
    let mut message = text.to_vec();
    message.push(0x80);
    message.resize(message.len().next_multiple_of(64) + if message.len() % 64 > 56 { 64 } else { 0 }, 0);
    let at = message.len() - 8;
    message[at..].copy_from_slice(&(text.len() as u64 * 8).to_le_bytes());
    let mut state = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in message.as_chunks::<64>().0 {
        let words = block.as_chunks::<4>().0;
        let [mut a, mut b, mut c, mut d] = state;
        for i in 0..64usize {
            let (mix, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), (7 * i) % 16),
            };
            // The table of RFC 1321 is defined by the sine.
            let k = (((i + 1) as f64).sin().abs() * 4_294_967_296.0) as u32;
            let sum = a.wrapping_add(mix).wrapping_add(k).wrapping_add(u32::from_le_bytes(words[word]));
            (a, d, c, b) = (d, c, b, b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4])));
        }
        for (s, x) in state.iter_mut().zip([a, b, c, d]) {
            *s = s.wrapping_add(x);
        }
    }
    u32::from_be_bytes(state[0].to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_1321() {
        let digits = "1234567890".repeat(8);
        for (text, first) in [
            ("", 0xd41d_8cd9),
            ("a", 0x0cc1_75b9),
            ("abc", 0x9001_5098),
            ("message digest", 0xf96b_697d),
            ("abcdefghijklmnopqrstuvwxyz", 0xc3fc_d3d7),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 0xd174_ab98),
            (digits.as_str(), 0x57ed_f4a2),
        ] {
            assert_eq!(first32(text.as_bytes()), first, "{text:?}");
        }
    }
}
