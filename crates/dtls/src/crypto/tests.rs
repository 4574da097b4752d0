use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The vector for TLS 1.2's PRF with SHA-256 that was posted to the TLS working group (mail 03416) and is in wide use.
#[test]
fn prf_gives_the_known_vector() {
    let secret = hex("9bbe436ba940f017b17652849a71db35");
    let seed = hex("a0ba9f936cda311827a6f796ffd5198c");
    let mut out = [0; 100];
    prf(&secret, b"test label", [&seed[..5], &seed[5..]], &mut out);
    let expected =
        hex("e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14baf9af0fa022f7
         077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff70187347b66");
    assert_eq!(out[..], expected[..]);
}

/// NIST SP 800-38C, example 2, has a nonce of eight bytes and a tag of six; RFC 3610's packet vectors have tags of eight
/// and nonces of thirteen. Ours have nonces of twelve, so both are run through the same construction with their own sizes.
#[test]
fn ccm_gives_the_vectors_of_rfc_3610_and_nist() {
    use ccm::consts::{U6, U13};

    // RFC 3610 §8, packet vector #1.
    let key = hex("c0c1c2c3c4c5c6c7c8c9cacbcccdcecf");
    let nonce = hex("00000003020100a0a1a2a3a4a5");
    let additional = hex("0001020304050607");
    let mut text = hex("08090a0b0c0d0e0f101112131415161718191a1b1c1d1e");
    let cipher = ccm::Ccm::<aes::Aes128Enc, U8, U13>::new_from_slice(&key).unwrap();
    let tag = cipher.encrypt_in_place_detached(GenericArray::from_slice(&nonce), &additional, &mut text).unwrap();
    assert_eq!(text, hex("588c979a61c663d2f066d0c2c0f989806d5f6b61dac384"));
    assert_eq!(tag.to_vec(), hex("17e8d12cfdf926e0"));

    // NIST SP 800-38C, example 2.
    let key = hex("404142434445464748494a4b4c4d4e4f");
    let nonce = hex("1011121314151617");
    let additional = hex("000102030405060708090a0b0c0d0e0f");
    let mut text = hex("202122232425262728292a2b2c2d2e2f");
    let cipher = ccm::Ccm::<aes::Aes128Enc, U6, U8>::new_from_slice(&key).unwrap();
    let tag = cipher.encrypt_in_place_detached(GenericArray::from_slice(&nonce), &additional, &mut text).unwrap();
    assert_eq!(text, hex("d2a1f0e051ea5f62081a7792073d593d"));
    assert_eq!(tag.to_vec(), hex("1fc64fbfaccd"));
}

/// Made with OpenSSL's AES-128-CCM through a nonce of twelve bytes and a tag of eight (see `tests/vectors/vectors.py`).
#[test]
fn a_direction_key_is_ccm_with_nonce_salt_and_explicit() {
    let key = DirectionKey::new(
        hex("000102030405060708090a0b0c0d0e0f").try_into().unwrap(),
        hex("f0f1f2f3").try_into().unwrap(),
    );
    let explicit: [u8; 8] = hex("0001000000000005").try_into().unwrap();
    let additional = hex("000100000000000517fefd0013");
    let mut text = b"nineteen bytes here".to_vec();
    let tag = key.seal(explicit, &additional, &mut text);
    assert_eq!(text, hex("4a05e7474fd1ae7cfd04f0d595058fe3aa56cd"));
    assert_eq!(tag.to_vec(), hex("e2023f888dfee4c7"));
    assert_eq!(key.open(explicit, &additional, &mut text.clone(), &tag), Ok(()));
    let mut wrong = tag;
    wrong[7] ^= 0x80;
    assert_eq!(key.open(explicit, &additional, &mut text, &wrong), Err(Forged));
}

/// RFC 4279 §2: `uint16 N ‖ N zeros ‖ uint16 N ‖ key`.
#[test]
fn the_premaster_secret_has_the_shape_of_rfc_4279() {
    assert_eq!(premaster(b"abc")[..], [0, 3, 0, 0, 0, 0, 3, b'a', b'b', b'c']);
}

/// Made with Python's `hmac` from the formulas of RFC 5246 §8.1 and RFC 7627 §4 (see `tests/vectors/vectors.py`).
#[test]
fn the_key_schedule_gives_independent_results() {
    let client = [0x11; 32];
    let server = [0x22; 32];
    let psk = b"0123456789abcdef";
    let mut master = Zeroizing::new([0; MASTER_SECRET_LEN]);
    master_secret(psk, &client, &server, &mut master);
    assert_eq!(
        master.to_vec(),
        hex("b4d9d59b043595e2dd484ef4c67031535e91979c0d579093718fa21e8bcc5099fd003aabd59e5f85ddb1c59bdc106f47")
    );
    extended_master_secret(psk, &[0x33; 32], &mut master);
    assert_eq!(
        master.to_vec(),
        hex("418a553e3a6c511236ac45b6c749c9a29c67f6516eabd6ec7e4873283c1a59012e00cbb1250312463790c8325161886a")
    );
    let (mut client_key, mut server_key) = (DirectionKey::blank(), DirectionKey::blank());
    KeyBlock { client: &mut client_key, server: &mut server_key }.derive(&master, &client, &server);
    assert_eq!(client_key.key.to_vec(), hex("16949704e368322f90c7173d5e2b5f71"));
    assert_eq!(server_key.key.to_vec(), hex("8538f372dcc7c55a6fe571c7d38aacc7"));
    assert_eq!(client_key.salt.to_vec(), hex("0027ad49"));
    assert_eq!(server_key.salt.to_vec(), hex("106ba8c8"));
    assert_eq!(verify_data(&master, Sender::Client, &[0x44; 32]).to_vec(), hex("4e487233c6bf61d311087e47"));
    assert_eq!(verify_data(&master, Sender::Server, &[0x44; 32]).to_vec(), hex("a16fd2aaa601f10a71648793"));
}
