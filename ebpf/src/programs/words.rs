//! Addresses in a program's context. The verifier allows one word at a time, and
//! no address arithmetic; volatile access keeps the compiler from doing either.

use duet_ebpf::Ip;

#[inline(always)]
pub fn read(words: *const [u32; 4]) -> Ip {
    let word = |i: usize| unsafe { (&raw const (*words)[i]).read_volatile() };
    Ip([word(0), word(1), word(2), word(3)])
}

#[inline(always)]
pub fn write(words: *mut [u32; 4], ip: Ip) {
    let word = |i: usize| unsafe { (&raw mut (*words)[i]).write_volatile(ip.0[i]) };
    word(0);
    word(1);
    word(2);
    word(3);
}
