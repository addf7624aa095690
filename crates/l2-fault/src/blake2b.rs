//! BLAKE2b (RFC 7693) without a key: LMCache chooses lost loads by it, so the same choice needs the same hash.

const IV: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

const SIGMA: [[usize; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/// Where the four words of each mixing step stand: the columns, then the diagonals.
const STEPS: [[usize; 4]; 8] = [
    [0, 4, 8, 12],
    [1, 5, 9, 13],
    [2, 6, 10, 14],
    [3, 7, 11, 15],
    [0, 5, 10, 15],
    [1, 6, 11, 12],
    [2, 7, 8, 13],
    [3, 4, 9, 14],
];

const BLOCK: usize = 128;

/// The hash of eight bytes.
pub(crate) fn blake2b_64(text: &[u8]) -> [u8; 8] {
    let mut h = IV;
    // The first parameter word: 8 bytes out, no key, fan-out and depth 1.
    h[0] ^= 0x0101_0008;
    let blocks = text.len().div_ceil(BLOCK).max(1);
    for i in 0..blocks {
        let piece = &text[i * BLOCK..text.len().min((i + 1) * BLOCK)];
        let mut block = [0; BLOCK];
        block[..piece.len()].copy_from_slice(piece);
        compress(&mut h, &block, (i * BLOCK + piece.len()) as u128, i + 1 == blocks);
    }
    h[0].to_le_bytes()
}

fn compress(h: &mut [u64; 8], block: &[u8; BLOCK], bytes: u128, last: bool) {
    let words = block.as_chunks::<8>().0;
    let m: [u64; 16] = std::array::from_fn(|i| u64::from_le_bytes(words[i]));
    let mut v: [u64; 16] = std::array::from_fn(|i| if i < 8 { h[i] } else { IV[i - 8] });
    v[12] ^= bytes as u64;
    v[13] ^= (bytes >> 64) as u64;
    if last {
        v[14] = !v[14];
    }
    for round in 0..12 {
        let order = SIGMA[round % 10].as_chunks::<2>().0;
        for ([a, b, c, d], [x, y]) in STEPS.into_iter().zip(order) {
            v[a] = v[a].wrapping_add(v[b]).wrapping_add(m[*x]);
            v[d] = (v[d] ^ v[a]).rotate_right(32);
            v[c] = v[c].wrapping_add(v[d]);
            v[b] = (v[b] ^ v[c]).rotate_right(24);
            v[a] = v[a].wrapping_add(v[b]).wrapping_add(m[*y]);
            v[d] = (v[d] ^ v[a]).rotate_right(16);
            v[c] = v[c].wrapping_add(v[d]);
            v[b] = (v[b] ^ v[c]).rotate_right(63);
        }
    }
    for (i, word) in h.iter_mut().enumerate() {
        *word ^= v[i] ^ v[i + 8];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with Python's hashlib: `hashlib.blake2b(bytes(i % 251 for i in range(n)), digest_size=8).hexdigest()`.
    #[test]
    fn hashes_are_those_of_another_implementation() {
        for (n, expected) in [
            (0, 0xe4a6_a057_7479_b2b4),
            (1, 0x94f6_d9cd_d1ea_8248),
            (3, 0xe879_c201_68a0_a436),
            (127, 0x6800_5651_c301_c41e),
            (128, 0xc2d1_3df1_b661_7e82),
            (129, 0xf667_e47a_6d53_50a6),
            (256, 0x511a_778d_539d_7a3c),
            (1000, 0x669c_a836_a838_577f),
        ] {
            let text: Vec<u8> = (0..n).map(|i: u32| (i % 251) as u8).collect();
            assert_eq!(u64::from_be_bytes(blake2b_64(&text)), expected, "{n} bytes");
        }
    }
}
