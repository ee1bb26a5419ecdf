#include "textflag.h"

// AES-GCM (NIST SP 800-38D) on 512-bit vectors: VAES for the counter mode, VPCLMULQDQ for GHASH. Each vector holds four
// blocks; 256 bytes are on their way at a time. Nothing here branches on, or indexes by, a secret: what is branched on
// are lengths and the key's size.
//
// Numbers of GHASH are kept with their bytes reversed, so that bit 127-i of a register is the coefficient of x^i. The
// carry-less product of two such numbers comes out one bit short of its place, so each power of the hash key H is kept
// as H^k/x: then product(a, H^k/x) is a·H^k, unreduced, in 256 bits, whose low half holds the coefficients of x^128 and
// up. x^128 = 1+x+x^2+x^7 folds them into the high half, 64 bits at a time (S. Gueron, M. Kounavis, "Intel Carry-Less
// Multiplication Instruction and its Usage for Computing the GCM Mode", 2014): see REDUCE.
//
// Layout of a key, which is `schedule` in vaes_amd64.go.
#define LONG 0 // 1 for AES-256, 0 for AES-128
#define POWERS 64 // H^16/x, the higher ones first; H^17/x is before it, 17 of them in all
#define POWER1 304 // H/x
#define ROUNDS 320 // keys of the rounds 0 to 13 at most, and the last round's, always in place 14
#define LAST (ROUNDS+14*16)

// Registers. A tail and what does not come in fours uses some of them otherwise, and says so.
//	Z0-Z3    counter blocks, then key stream, then output
//	Z4-Z7    blocks for GHASH, bytes reversed
//	Z8-Z10   the product's low 128 bits, middle 128 (at bit 64), high 128
//	X10      between products: the hash so far
//	Z11 Z13  for the moment
//	Z12      the next four counter blocks, bytes reversed: the counter is each one's lowest 32 bits
//	Z14      mask that reverses the bytes of each block
//	Z15      powers of H
//	Z16-Z30  round keys; Z30 the last one's
//	Z31      x^7+x^2+x, reversed: 0xc2 << 56 in each half
//	SI DI CX source, destination, bytes left; DX the key; R8 LONG

DATA reverse<>+0x00(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+0x08(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), RODATA|NOPTR, $16

DATA poly<>+0x00(SB)/8, $0xc200000000000000
DATA poly<>+0x08(SB)/8, $0xc200000000000000
GLOBL poly<>(SB), RODATA|NOPTR, $16

// What division by x adds: 1/x = 1+x+x^6+x^127, and the carry from one half to the other.
DATA carry<>+0x00(SB)/8, $0x0000000000000001
DATA carry<>+0x08(SB)/8, $0xc200000000000001
GLOBL carry<>(SB), RODATA|NOPTR, $16

// Counters of the first four blocks of data after that of the tag, and from four to the next four.
DATA first<>+0x00(SB)/8, $1
DATA first<>+0x08(SB)/8, $0
DATA first<>+0x10(SB)/8, $2
DATA first<>+0x18(SB)/8, $0
DATA first<>+0x20(SB)/8, $3
DATA first<>+0x28(SB)/8, $0
DATA first<>+0x30(SB)/8, $4
DATA first<>+0x38(SB)/8, $0
GLOBL first<>(SB), RODATA|NOPTR, $64

DATA four<>+0x00(SB)/8, $4
DATA four<>+0x08(SB)/8, $0
DATA four<>+0x10(SB)/8, $4
DATA four<>+0x18(SB)/8, $0
DATA four<>+0x20(SB)/8, $4
DATA four<>+0x28(SB)/8, $0
DATA four<>+0x30(SB)/8, $4
DATA four<>+0x38(SB)/8, $0
GLOBL four<>(SB), RODATA|NOPTR, $64

// NEXT puts the next four counter blocks into out. The addition is in 32 bits, as GCM's counter wraps.
#define NEXT(out) \
	VPSHUFB Z14, Z12, out; \
	VPADDD  four<>(SB), Z12, Z12

// FIRST4 begins sixteen blocks of key stream.
#define FIRST4 \
	NEXT(Z0); \
	NEXT(Z1); \
	NEXT(Z2); \
	NEXT(Z3); \
	VPXORQ Z16, Z0, Z0; \
	VPXORQ Z16, Z1, Z1; \
	VPXORQ Z16, Z2, Z2; \
	VPXORQ Z16, Z3, Z3

// ROUND4 is one round of them.
#define ROUND4(key) \
	VAESENC key, Z0, Z0; \
	VAESENC key, Z1, Z1; \
	VAESENC key, Z2, Z2; \
	VAESENC key, Z3, Z3

// LONG4 is what AES-256 has more.
#define LONG4(short) \
	TESTQ R8, R8; \
	JZ    short; \
	ROUND4(Z26); \
	ROUND4(Z27); \
	ROUND4(Z28); \
	ROUND4(Z29); \
short:

// LAST4 is the last round, which ends with the round key's addition: adding the source to the key first saves a step.
#define LAST4 \
	VPXORQ      (SI), Z30, Z4; \
	VPXORQ      64(SI), Z30, Z5; \
	VPXORQ      128(SI), Z30, Z6; \
	VPXORQ      192(SI), Z30, Z7; \
	VAESENCLAST Z4, Z0, Z0; \
	VAESENCLAST Z5, Z1, Z1; \
	VAESENCLAST Z6, Z2, Z2; \
	VAESENCLAST Z7, Z3, Z3; \
	VMOVDQU64   Z0, (DI); \
	VMOVDQU64   Z1, 64(DI); \
	VMOVDQU64   Z2, 128(DI); \
	VMOVDQU64   Z3, 192(DI); \
	ADDQ        $256, SI; \
	ADDQ        $256, DI; \
	SUBQ        $256, CX

// ROUNDS1 are all rounds but the last of what is in one register.
#define ROUNDS1(r, short) \
	VPXORQ  Z16, r, r; \
	VAESENC Z17, r, r; \
	VAESENC Z18, r, r; \
	VAESENC Z19, r, r; \
	VAESENC Z20, r, r; \
	VAESENC Z21, r, r; \
	VAESENC Z22, r, r; \
	VAESENC Z23, r, r; \
	VAESENC Z24, r, r; \
	VAESENC Z25, r, r; \
	TESTQ   R8, R8; \
	JZ      short; \
	VAESENC Z26, r, r; \
	VAESENC Z27, r, r; \
	VAESENC Z28, r, r; \
	VAESENC Z29, r, r; \
short:

// PRODUCT multiplies four blocks by Z15, PRODUCTMORE adds four more products.
#define PRODUCT(blocks) \
	VPCLMULQDQ $0x00, Z15, blocks, Z8; \
	VPCLMULQDQ $0x11, Z15, blocks, Z10; \
	VPCLMULQDQ $0x01, Z15, blocks, Z9; \
	VPCLMULQDQ $0x10, Z15, blocks, Z13; \
	VPXORQ     Z13, Z9, Z9

#define PRODUCTMORE(blocks) \
	VPCLMULQDQ $0x00, Z15, blocks, Z11; \
	VPXORQ     Z11, Z8, Z8; \
	VPCLMULQDQ $0x11, Z15, blocks, Z11; \
	VPXORQ     Z11, Z10, Z10; \
	VPCLMULQDQ $0x01, Z15, blocks, Z11; \
	VPCLMULQDQ $0x10, Z15, blocks, Z13; \
	VPTERNLOGQ $0x96, Z11, Z13, Z9

// REDUCE folds the low 64 bits into those above them, twice: the low 128 into the middle, the middle into the high.
#define REDUCE(low, high) \
	VPCLMULQDQ $0x00, Z31, low, Z11; \
	VPSHUFD    $0x4e, low, low; \
	VPTERNLOGQ $0x96, Z11, low, high

// SUM adds the four reduced products of Z10 into X10, and zeroes what is above it.
#define SUM \
	VEXTRACTI64X4 $1, Z10, Y11; \
	VPXOR         Y11, Y10, Y10; \
	VEXTRACTI128  $1, Y10, X11; \
	VPXOR         X11, X10, X10

// HASH adds the sixteen blocks of Z4-Z7 to the hash.
#define HASH \
	VPXORQ    Z10, Z4, Z4; \
	VMOVDQU64 (POWERS+64)(DX), Z15; \
	PRODUCT(Z5); \
	VMOVDQU64 (POWERS+128)(DX), Z15; \
	PRODUCTMORE(Z6); \
	VMOVDQU64 (POWERS+192)(DX), Z15; \
	PRODUCTMORE(Z7); \
	VMOVDQU64 POWERS(DX), Z15; \
	PRODUCTMORE(Z4); \
	REDUCE(Z8, Z9); \
	REDUCE(Z9, Z10); \
	SUM

// BOTH is FIRST4 up to the last round with HASH between: the units for AES and for the products are not the same ones.
// The first block's product comes last, for it waits for the hash before.
#define BOTH(short) \
	FIRST4; \
	VPXORQ    Z10, Z4, Z4; \
	VMOVDQU64 (POWERS+64)(DX), Z15; \
	ROUND4(Z17); \
	PRODUCT(Z5); \
	VMOVDQU64 (POWERS+128)(DX), Z15; \
	ROUND4(Z18); \
	PRODUCTMORE(Z6); \
	VMOVDQU64 (POWERS+192)(DX), Z15; \
	ROUND4(Z19); \
	PRODUCTMORE(Z7); \
	VMOVDQU64 POWERS(DX), Z15; \
	ROUND4(Z20); \
	PRODUCTMORE(Z4); \
	ROUND4(Z21); \
	ROUND4(Z22); \
	REDUCE(Z8, Z9); \
	ROUND4(Z23); \
	ROUND4(Z24); \
	REDUCE(Z9, Z10); \
	ROUND4(Z25); \
	SUM; \
	LONG4(short)

// REVERSE4 makes the output ready for GHASH.
#define REVERSE4 \
	VPSHUFB Z14, Z0, Z4; \
	VPSHUFB Z14, Z1, Z5; \
	VPSHUFB Z14, Z2, Z6; \
	VPSHUFB Z14, Z3, Z7

// LOADKEY fills the registers that stay as they are. R9 points to the counter block of the tag.
#define LOADKEY \
	MOVQ            LONG(DX), R8; \
	VBROADCASTI32X4 (ROUNDS+0*16)(DX), Z16; \
	VBROADCASTI32X4 (ROUNDS+1*16)(DX), Z17; \
	VBROADCASTI32X4 (ROUNDS+2*16)(DX), Z18; \
	VBROADCASTI32X4 (ROUNDS+3*16)(DX), Z19; \
	VBROADCASTI32X4 (ROUNDS+4*16)(DX), Z20; \
	VBROADCASTI32X4 (ROUNDS+5*16)(DX), Z21; \
	VBROADCASTI32X4 (ROUNDS+6*16)(DX), Z22; \
	VBROADCASTI32X4 (ROUNDS+7*16)(DX), Z23; \
	VBROADCASTI32X4 (ROUNDS+8*16)(DX), Z24; \
	VBROADCASTI32X4 (ROUNDS+9*16)(DX), Z25; \
	VBROADCASTI32X4 (ROUNDS+10*16)(DX), Z26; \
	VBROADCASTI32X4 (ROUNDS+11*16)(DX), Z27; \
	VBROADCASTI32X4 (ROUNDS+12*16)(DX), Z28; \
	VBROADCASTI32X4 (ROUNDS+13*16)(DX), Z29; \
	VBROADCASTI32X4 LAST(DX), Z30; \
	VBROADCASTI32X4 poly<>(SB), Z31; \
	VBROADCASTI32X4 reverse<>(SB), Z14; \
	VBROADCASTI32X4 (R9), Z12; \
	VPSHUFB         Z14, Z12, Z12; \
	VPADDD          first<>(SB), Z12, Z12

// HASHAAD begins the hash with the BX bytes of additional data at AX, a block at a time: TLS has 5 bytes.
#define HASHAAD(whole, part, multiply, done) \
	VPXOR      X10, X10, X10; \
	TESTQ      BX, BX; \
	JZ         done; \
	VMOVDQU    POWER1(DX), X15; \
whole: \
	CMPQ       BX, $16; \
	JB         part; \
	VMOVDQU    (AX), X4; \
	JMP        multiply; \
part: \
	MOVQ       $-1, R9; \
	BZHIQ      BX, R9, R9; \
	KMOVQ      R9, K1; \
	VMOVDQU8.Z (AX), K1, X4; \
	MOVQ       $16, BX; \
multiply: \
	VPSHUFB    X14, X4, X4; \
	VPXOR      X10, X4, X4; \
	PRODUCT(Z4); \
	REDUCE(Z8, Z9); \
	REDUCE(Z9, Z10); \
	ADDQ       $16, AX; \
	SUBQ       $16, BX; \
	JNZ        whole; \
done:

// The tail: fewer than 256 bytes, a vector at a time under a mask, then the block of lengths. The products of all of
// these are reduced once: the n blocks take H^(n+1) to H^2, the lengths H. Past the last block of data the vectors are
// zero, whatever is in Z15 there.
//	Z0 key stream, Z4 data, X6 the tag's mask, Z7 the hash before, R10 the next powers, K1 the bytes there are
#define TAILBEGIN(short) \
	VMOVDQU     (R9), X6; \
	ROUNDS1(Z6, short); \
	VAESENCLAST Z30, Z6, Z6; \
	VMOVDQA64   Z10, Z7; \
	VPXORQ      Z8, Z8, Z8; \
	VPXORQ      Z9, Z9, Z9; \
	VPXORQ      Z10, Z10, Z10; \
	LEAQ        15(CX), R9; \
	ANDQ        $-16, R9; \
	LEAQ        POWER1(DX), R10; \
	SUBQ        R9, R10; \
	MOVQ        $-1, R11

// TAILCRYPT does a vector: its input is then in Z4, its output in Z0, both with bytes beyond the end. BZHI takes counts
// up to 255, and all ones from 64 on.
#define TAILCRYPT(short) \
	BZHIQ       CX, R11, R9; \
	KMOVQ       R9, K1; \
	NEXT(Z0); \
	ROUNDS1(Z0, short); \
	VMOVDQU8.Z  (SI), K1, Z4; \
	VPXORQ      Z4, Z30, Z5; \
	VAESENCLAST Z5, Z0, Z0; \
	VMOVDQU8    Z0, K1, (DI)

// TAILHASH adds the vector in Z4.
#define TAILHASH \
	VPSHUFB   Z14, Z4, Z4; \
	VPXORQ    Z7, Z4, Z4; \
	VPXORQ    Z7, Z7, Z7; \
	VMOVDQU64 (R10), Z15; \
	PRODUCTMORE(Z4); \
	ADDQ      $64, SI; \
	ADDQ      $64, DI; \
	ADDQ      $64, R10; \
	SUBQ      $64, CX

// TAILEND adds the lengths, R9 bytes of data and BX of additional data, and stores the tag at AX. The keys do not stay
// in registers, from where a signal's frame would take them to memory.
#define TAILEND \
	SHLQ       $3, R9; \
	SHLQ       $3, BX; \
	VMOVQ      R9, X4; \
	VPINSRQ    $1, BX, X4, X4; \
	VPXORQ     Z7, Z4, Z4; \
	VMOVDQU    POWER1(DX), X15; \
	PRODUCTMORE(Z4); \
	REDUCE(Z8, Z9); \
	REDUCE(Z9, Z10); \
	SUM; \
	VPSHUFB    X14, X10, X10; \
	VPXOR      X6, X10, X10; \
	VMOVDQU    X10, (AX); \
	VPXORQ     Z16, Z16, Z16; \
	VPXORQ     Z17, Z17, Z17; \
	VPXORQ     Z18, Z18, Z18; \
	VPXORQ     Z19, Z19, Z19; \
	VPXORQ     Z20, Z20, Z20; \
	VPXORQ     Z21, Z21, Z21; \
	VPXORQ     Z22, Z22, Z22; \
	VPXORQ     Z23, Z23, Z23; \
	VPXORQ     Z24, Z24, Z24; \
	VPXORQ     Z25, Z25, Z25; \
	VPXORQ     Z26, Z26, Z26; \
	VPXORQ     Z27, Z27, Z27; \
	VPXORQ     Z28, Z28, Z28; \
	VPXORQ     Z29, Z29, Z29; \
	VPXORQ     Z30, Z30, Z30; \
	VZEROALL

// func seal(s *schedule, counter *[16]byte, dst, src *byte, n int, aad *byte, aadLen int, tag *[16]byte)
TEXT ·seal(SB), NOSPLIT, $0-64
	MOVQ s+0(FP), DX
	MOVQ counter+8(FP), R9
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	MOVQ n+32(FP), CX
	MOVQ aad+40(FP), AX
	MOVQ aadLen+48(FP), BX
	LOADKEY
	HASHAAD(sealWhole, sealPart, sealMultiply, sealHashed)
	CMPQ CX, $256
	JB   sealTail

	// What is hashed is the output, so the hash runs 256 bytes behind.
	FIRST4
	ROUND4(Z17)
	ROUND4(Z18)
	ROUND4(Z19)
	ROUND4(Z20)
	ROUND4(Z21)
	ROUND4(Z22)
	ROUND4(Z23)
	ROUND4(Z24)
	ROUND4(Z25)
	LONG4(sealShort0)
	LAST4
	REVERSE4
	CMPQ CX, $256
	JB   sealFlush

sealLoop:
	BOTH(sealShort1)
	LAST4
	REVERSE4
	CMPQ CX, $256
	JAE  sealLoop

sealFlush:
	HASH

sealTail:
	MOVQ  counter+8(FP), R9
	TAILBEGIN(sealShort2)
	TESTQ CX, CX
	JZ    sealEnd

sealTailLoop:
	TAILCRYPT(sealShort3)
	VMOVDQU8.Z Z0, K1, Z4
	TAILHASH
	JHI        sealTailLoop

sealEnd:
	MOVQ n+32(FP), R9
	MOVQ aadLen+48(FP), BX
	MOVQ tag+56(FP), AX
	TAILEND
	RET

// func open(s *schedule, counter *[16]byte, dst, src *byte, n int, aad *byte, aadLen int, tag *[16]byte)
TEXT ·open(SB), NOSPLIT, $0-64
	MOVQ s+0(FP), DX
	MOVQ counter+8(FP), R9
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	MOVQ n+32(FP), CX
	MOVQ aad+40(FP), AX
	MOVQ aadLen+48(FP), BX
	LOADKEY
	HASHAAD(openWhole, openPart, openMultiply, openHashed)
	CMPQ CX, $256
	JB   openTail

openLoop:
	VMOVDQU64 (SI), Z4
	VMOVDQU64 64(SI), Z5
	VMOVDQU64 128(SI), Z6
	VMOVDQU64 192(SI), Z7
	VPSHUFB   Z14, Z4, Z4
	VPSHUFB   Z14, Z5, Z5
	VPSHUFB   Z14, Z6, Z6
	VPSHUFB   Z14, Z7, Z7
	BOTH(openShort1)
	LAST4
	CMPQ      CX, $256
	JAE       openLoop

openTail:
	MOVQ  counter+8(FP), R9
	TAILBEGIN(openShort2)
	TESTQ CX, CX
	JZ    openEnd

openTailLoop:
	TAILCRYPT(openShort3)
	TAILHASH
	JHI   openTailLoop

openEnd:
	MOVQ n+32(FP), R9
	MOVQ aadLen+48(FP), BX
	MOVQ tag+56(FP), AX
	TAILEND
	RET

// MIX is one step of the key expansion (FIPS 197 section 5.2): each word of r adds all words before it, and t.
#define MIX(r, t) \
	VPSLLDQ $4, r, X3; \
	VPXOR   X3, r, r; \
	VPSLLDQ $4, X3, X3; \
	VPXOR   X3, r, r; \
	VPSLLDQ $4, X3, X3; \
	VPXOR   X3, r, r; \
	VPXOR   t, r, r

#define EXPAND128(place, rcon) \
	VAESKEYGENASSIST $rcon, X0, X2; \
	VPSHUFD          $0xff, X2, X2; \
	MIX(X0, X2); \
	VMOVDQU          X0, (ROUNDS+place*16)(DX)

#define EXPAND256(place, rcon) \
	VAESKEYGENASSIST $rcon, X1, X2; \
	VPSHUFD          $0xff, X2, X2; \
	MIX(X0, X2); \
	VMOVDQU          X0, (ROUNDS+place*16)(DX)

#define EXPAND256ODD(place) \
	VAESKEYGENASSIST $0, X0, X2; \
	VPSHUFD          $0xaa, X2, X2; \
	MIX(X1, X2); \
	VMOVDQU          X1, (ROUNDS+place*16)(DX)

// POWER multiplies the last power by H and stores the product.
#define POWER(k) \
	PRODUCT(Z4); \
	REDUCE(Z8, Z9); \
	REDUCE(Z9, Z10); \
	VMOVDQA X10, X4; \
	VMOVDQU X4, (POWERS+(16-k)*16)(DX)

// func expand(s *schedule, key *byte)
TEXT ·expand(SB), NOSPLIT, $0-16
	MOVQ    s+0(FP), DX
	MOVQ    key+8(FP), AX
	MOVQ    LONG(DX), R8
	VMOVDQU (AX), X0
	VMOVDQU X0, ROUNDS(DX)
	TESTQ   R8, R8
	JNZ     expand256
	EXPAND128(1, 0x01)
	EXPAND128(2, 0x02)
	EXPAND128(3, 0x04)
	EXPAND128(4, 0x08)
	EXPAND128(5, 0x10)
	EXPAND128(6, 0x20)
	EXPAND128(7, 0x40)
	EXPAND128(8, 0x80)
	EXPAND128(9, 0x1b)
	EXPAND128(14, 0x36)
	JMP     hashKey

expand256:
	VMOVDQU 16(AX), X1
	VMOVDQU X1, (ROUNDS+16)(DX)
	EXPAND256(2, 0x01)
	EXPAND256ODD(3)
	EXPAND256(4, 0x02)
	EXPAND256ODD(5)
	EXPAND256(6, 0x04)
	EXPAND256ODD(7)
	EXPAND256(8, 0x08)
	EXPAND256ODD(9)
	EXPAND256(10, 0x10)
	EXPAND256ODD(11)
	EXPAND256(12, 0x20)
	EXPAND256ODD(13)
	EXPAND256(14, 0x40)

hashKey:
	// H is the zero block encrypted.
	VMOVDQU ROUNDS(DX), X4
	VAESENC (ROUNDS+1*16)(DX), X4, X4
	VAESENC (ROUNDS+2*16)(DX), X4, X4
	VAESENC (ROUNDS+3*16)(DX), X4, X4
	VAESENC (ROUNDS+4*16)(DX), X4, X4
	VAESENC (ROUNDS+5*16)(DX), X4, X4
	VAESENC (ROUNDS+6*16)(DX), X4, X4
	VAESENC (ROUNDS+7*16)(DX), X4, X4
	VAESENC (ROUNDS+8*16)(DX), X4, X4
	VAESENC (ROUNDS+9*16)(DX), X4, X4
	TESTQ   R8, R8
	JZ      hashKeyLast
	VAESENC (ROUNDS+10*16)(DX), X4, X4
	VAESENC (ROUNDS+11*16)(DX), X4, X4
	VAESENC (ROUNDS+12*16)(DX), X4, X4
	VAESENC (ROUNDS+13*16)(DX), X4, X4

hashKeyLast:
	VAESENCLAST LAST(DX), X4, X4
	VPSHUFB     reverse<>(SB), X4, X4

	// Divide by x: shift left; each half's highest bit becomes a word of ones that chooses what is to be added.
	VPSHUFD         $0xd3, X4, X5
	VPSRAD          $31, X5, X5
	VPAND           carry<>(SB), X5, X5
	VPADDQ          X4, X4, X4
	VPXOR           X5, X4, X4
	VMOVDQU         X4, POWER1(DX)
	VMOVDQA         X4, X15
	VBROADCASTI32X4 poly<>(SB), Z31
	POWER(2)
	POWER(3)
	POWER(4)
	POWER(5)
	POWER(6)
	POWER(7)
	POWER(8)
	POWER(9)
	POWER(10)
	POWER(11)
	POWER(12)
	POWER(13)
	POWER(14)
	POWER(15)
	POWER(16)
	POWER(17)
	VZEROALL
	RET
