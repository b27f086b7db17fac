;; What packing experts spends its time in, four or eight values at a time. wasm.ts loads the binary and says how memory is
;; laid out; `npm run wasm` makes it from this file. Counts are multiples of 8. The first 256 bytes are for a group at work.
(module
  (memory (export "memory") 1)

  ;; A small f32 plus 1.5 · 2^23 has the nearest integer in its low bits, ties to even.
  (global $round f32 (f32.const 12582912))

  ;; bf16 at $from → f32 at $to.
  (func (export "fromBf16") (param $from i32) (param $to i32) (param $count i32)
    (local $end i32) (local $halves v128)
    (local.set $end (i32.add (local.get $from) (i32.shl (local.get $count) (i32.const 1))))
    (loop $next
      (local.set $halves (v128.load (local.get $from)))
      (v128.store (local.get $to)
        (i32x4.shl (i32x4.extend_low_i16x8_u (local.get $halves)) (i32.const 16)))
      (v128.store offset=16 (local.get $to)
        (i32x4.shl (i32x4.extend_high_i16x8_u (local.get $halves)) (i32.const 16)))
      (local.set $from (i32.add (local.get $from) (i32.const 16)))
      (local.set $to (i32.add (local.get $to) (i32.const 32)))
      (br_if $next (i32.lt_u (local.get $from) (local.get $end)))))

  ;; The largest of the bits of f32 without their signs: the bits of the largest magnitude, or of a NaN.
  (func (export "maxBits") (param $from i32) (param $count i32) (result i32)
    (local $end i32) (local $most v128) (local $mask v128)
    (local.set $end (i32.add (local.get $from) (i32.shl (local.get $count) (i32.const 2))))
    (local.set $mask (i32x4.splat (i32.const 0x7fffffff)))
    (loop $next
      (local.set $most (i32x4.max_s (local.get $most)
        (v128.and (v128.load (local.get $from)) (local.get $mask))))
      (local.set $from (i32.add (local.get $from) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $from) (local.get $end))))
    (local.set $most (i32x4.max_s (local.get $most)
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $most) (local.get $most))))
    (local.set $most (i32x4.max_s (local.get $most)
      (i8x16.shuffle 4 5 6 7 0 1 2 3 12 13 14 15 8 9 10 11 (local.get $most) (local.get $most))))
    (i32x4.extract_lane 0 (local.get $most)))

  ;; Rows of f32 at $values → nibbles of four bits at $out, f16 scales at $scales, $scaleBytes from row to row.
  (func (export "packInt4")
    (param $values i32) (param $rows i32) (param $columns i32) (param $group i32)
    (param $out i32) (param $scales i32) (param $scaleBytes i32)
    (local $rowEnd i32) (local $groupEnd i32) (local $scaleAt i32) (local $half i32)
    (local.set $group (i32.shl (local.get $group) (i32.const 2)))
    (loop $row
      (local.set $rowEnd (i32.add (local.get $values) (i32.shl (local.get $columns) (i32.const 2))))
      (local.set $scaleAt (local.get $scales))
      (loop $nextGroup
        (local.set $groupEnd (i32.add (local.get $values) (local.get $group)))
        (if (i32.gt_u (local.get $groupEnd) (local.get $rowEnd))
          (then (local.set $groupEnd (local.get $rowEnd))))
        (local.set $half (call $toF16 (call $scale (local.get $values) (local.get $groupEnd))))
        (i32.store16 (local.get $scaleAt) (local.get $half))
        (call $nibbles (local.get $values) (local.get $groupEnd) (local.get $out)
          (call $inverse (local.get $half)))
        (local.set $out (i32.add (local.get $out)
          (i32.shr_u (i32.sub (local.get $groupEnd) (local.get $values)) (i32.const 3))))
        (local.set $scaleAt (i32.add (local.get $scaleAt) (i32.const 2)))
        (local.set $values (local.get $groupEnd))
        (br_if $nextGroup (i32.lt_u (local.get $values) (local.get $rowEnd))))
      (local.set $scales (i32.add (local.get $scales) (local.get $scaleBytes)))
      (local.set $rows (i32.sub (local.get $rows) (i32.const 1)))
      (br_if $row (local.get $rows))))

  ;; The scale with the least squared error among those that eight reaches of the group's extreme value lead to.
  ;; The search is in integers of 16 bits, eight at a time. The extreme value is 16385, one more than what a reach is for:
  ;; so a reach between two integers takes it to the farther one.
  (func $scale (param $from i32) (param $end i32) (result f32)
    (local $at i32) (local $high v128) (local $low v128) (local $v v128)
    (local $extreme f32) (local $least f32) (local $factor v128) (local $magic v128)
    (local $gains v128) (local $scales v128) (local $moreGains v128) (local $moreScales v128)
    (local.set $at (local.get $from))
    (loop $next
      (local.set $v (v128.load (local.get $at)))
      (local.set $high (f32x4.pmax (local.get $high) (local.get $v)))
      (local.set $low (f32x4.pmin (local.get $low) (local.get $v)))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $high (f32x4.pmax (local.get $high)
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $high) (local.get $high))))
    (local.set $low (f32x4.pmin (local.get $low)
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $low) (local.get $low))))
    (local.set $extreme (f32.max
      (f32x4.extract_lane 0 (local.get $high)) (f32x4.extract_lane 1 (local.get $high))))
    (local.set $least (f32.min
      (f32x4.extract_lane 0 (local.get $low)) (f32x4.extract_lane 1 (local.get $low))))
    ;; Either sign is as likely: no branch.
    (local.set $extreme (select (local.get $least) (local.get $extreme)
      (f32.gt (f32.neg (local.get $least)) (local.get $extreme))))
    ;; Far below what an f16 scale can tell from zero, and dividing by it would overflow.
    (if (f32.lt (f32.abs (local.get $extreme)) (f32.const 1e-20))
      (then (return (f32.const 0))))
    ;; The group in 16 bits, at address 0.
    (local.set $factor (f32x4.splat (f32.div (f32.const 16385) (local.get $extreme))))
    (local.set $magic (f32x4.splat (global.get $round)))
    (local.set $at (i32.const 0))
    (loop $next
      (v128.store (local.get $at) (i16x8.narrow_i32x4_s
        (i32x4.sub
          (f32x4.add (f32x4.mul (v128.load (local.get $from)) (local.get $factor)) (local.get $magic))
          (local.get $magic))
        (i32x4.sub
          (f32x4.add
            (f32x4.mul (v128.load offset=16 (local.get $from)) (local.get $factor))
            (local.get $magic))
          (local.get $magic))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (local.set $from (i32.add (local.get $from) (i32.const 32)))
      (br_if $next (i32.lt_u (local.get $from) (local.get $end))))
    (call $tryFar (local.get $at))
    (local.set $scales) (local.set $gains)
    (call $tryNear (local.get $at))
    (local.set $moreScales) (local.set $moreGains)
    (call $choose (local.get $gains) (local.get $scales)
      (local.get $moreGains) (local.get $moreScales))
    (local.set $scales) (local.set $gains)
    (call $choose (local.get $gains) (local.get $scales)
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $gains) (local.get $gains))
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $scales) (local.get $scales)))
    (local.set $scales) (local.set $gains)
    (call $choose (local.get $gains) (local.get $scales)
      (i8x16.shuffle 4 5 6 7 0 1 2 3 12 13 14 15 8 9 10 11 (local.get $gains) (local.get $gains))
      (i8x16.shuffle 4 5 6 7 0 1 2 3 12 13 14 15 8 9 10 11 (local.get $scales) (local.get $scales)))
    (local.set $scales) (local.set $gains)
    (f32.mul (f32x4.extract_lane 0 (local.get $scales))
      (f32.div (local.get $extreme) (f32.const 16385))))

  ;; Lane by lane the scale with the larger gain, the first where they are equal: (gains, scales).
  (func $choose (param $gains v128) (param $scales v128) (param $otherGains v128)
    (param $otherScales v128) (result v128 v128)
    (local $other v128)
    (local.set $other (f32x4.gt (local.get $otherGains) (local.get $gains)))
    (v128.bitselect (local.get $otherGains) (local.get $gains) (local.get $other))
    (v128.bitselect (local.get $otherScales) (local.get $scales) (local.get $other)))

  ;; For the reaches −8, −7.5, −8.5 and −9: what the best scale for the integers they give gains, and that scale.
  ;; With integers q the scale Σvq/Σq² leaves the error Σv² − (Σvq)²/Σq².
  ;; The product of v with twice a reach, over 2^15 and rounded to nearest, is what v becomes with it.
  (func $tryFar (param $end i32) (result v128 v128)
    (local $at i32) (local $v v128) (local $q v128)
    (local $p0 v128) (local $p1 v128) (local $p2 v128) (local $p3 v128)
    (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)
    (local $r0 v128) (local $r1 v128) (local $r2 v128) (local $r3 v128) (local $high v128) (local $low v128)
    (local.set $r0 (i16x8.splat (i32.const -16)))
    (local.set $r1 (i16x8.splat (i32.const -15)))
    (local.set $r2 (i16x8.splat (i32.const -17)))
    (local.set $r3 (i16x8.splat (i32.const -18)))
    (local.set $high (i16x8.splat (i32.const 7)))
    (local.set $low (i16x8.splat (i32.const -8)))
    (loop $next
      (local.set $v (v128.load (local.get $at)))
      (local.set $q (i16x8.min_s (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r0))
        (local.get $high)))
      (local.set $p0 (i32x4.add (local.get $p0) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s0 (i32x4.add (local.get $s0) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $q (i16x8.min_s (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r1))
        (local.get $high)))
      (local.set $p1 (i32x4.add (local.get $p1) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s1 (i32x4.add (local.get $s1) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $q (i16x8.min_s (i16x8.max_s (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r2))
        (local.get $low))
        (local.get $high)))
      (local.set $p2 (i32x4.add (local.get $p2) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s2 (i32x4.add (local.get $s2) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $q (i16x8.min_s (i16x8.max_s (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r3))
        (local.get $low))
        (local.get $high)))
      (local.set $p3 (i32x4.add (local.get $p3) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s3 (i32x4.add (local.get $s3) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $v (call $sums (local.get $p0) (local.get $p1) (local.get $p2) (local.get $p3)))
    (local.set $q (call $sums (local.get $s0) (local.get $s1) (local.get $s2) (local.get $s3)))
    (f32x4.div (f32x4.mul (local.get $v) (local.get $v)) (local.get $q))
    (f32x4.div (local.get $v) (local.get $q)))

  ;; The same for −7, −6.5, 7 and 7.5: none reaches below −8 and only the last beyond 7.
  (func $tryNear (param $end i32) (result v128 v128)
    (local $at i32) (local $v v128) (local $q v128)
    (local $p0 v128) (local $p1 v128) (local $p2 v128) (local $p3 v128)
    (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)
    (local $r0 v128) (local $r1 v128) (local $r2 v128) (local $r3 v128) (local $high v128)
    (local.set $r0 (i16x8.splat (i32.const -14)))
    (local.set $r1 (i16x8.splat (i32.const -13)))
    (local.set $r2 (i16x8.splat (i32.const 14)))
    (local.set $r3 (i16x8.splat (i32.const 15)))
    (local.set $high (i16x8.splat (i32.const 7)))
    (loop $next
      (local.set $v (v128.load (local.get $at)))
      (local.set $q (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r0)))
      (local.set $p0 (i32x4.add (local.get $p0) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s0 (i32x4.add (local.get $s0) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $q (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r1)))
      (local.set $p1 (i32x4.add (local.get $p1) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s1 (i32x4.add (local.get $s1) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $q (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r2)))
      (local.set $p2 (i32x4.add (local.get $p2) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s2 (i32x4.add (local.get $s2) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $q (i16x8.min_s (i16x8.relaxed_q15mulr_s (local.get $v) (local.get $r3))
        (local.get $high)))
      (local.set $p3 (i32x4.add (local.get $p3) (i32x4.dot_i16x8_s (local.get $v) (local.get $q))))
      (local.set $s3 (i32x4.add (local.get $s3) (i32x4.dot_i16x8_s (local.get $q) (local.get $q))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $v (call $sums (local.get $p0) (local.get $p1) (local.get $p2) (local.get $p3)))
    (local.set $q (call $sums (local.get $s0) (local.get $s1) (local.get $s2) (local.get $s3)))
    (f32x4.div (f32x4.mul (local.get $v) (local.get $v)) (local.get $q))
    (f32x4.div (local.get $v) (local.get $q)))

  ;; The sums of the lanes of four vectors of integers, as one of f32.
  (func $sums (param $a v128) (param $b v128) (param $c v128) (param $d v128) (result v128)
    (local.set $a (i32x4.add
      (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $a) (local.get $b))
      (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $a) (local.get $b))))
    (local.set $c (i32x4.add
      (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $c) (local.get $d))
      (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $c) (local.get $d))))
    (f32x4.convert_i32x4_s (i32x4.add
      (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $a) (local.get $c))
      (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $a) (local.get $c)))))

  ;; Values · $inverse + 8, rounded to 0 … 15, eight to a u32.
  (func $nibbles (param $at i32) (param $end i32) (param $out i32) (param $scale f32)
    (local $inverse v128) (local $codes v128) (local $magic v128) (local $low v128) (local $high v128)
    (local $pairs v128)
    (local.set $inverse (f32x4.splat (local.get $scale)))
    (local.set $magic (f32x4.splat (global.get $round)))
    (local.set $low (i16x8.splat (i32.const -8)))
    (local.set $high (i16x8.splat (i32.const 7)))
    (local.set $pairs (i32x4.splat (i32.const 0x100001)))
    (loop $next
      (local.set $codes (i16x8.sub
        (i16x8.max_s (local.get $low)
          (i16x8.min_s (local.get $high)
            (i16x8.narrow_i32x4_s
              (i32x4.sub
                (f32x4.add
                  (f32x4.mul (v128.load (local.get $at)) (local.get $inverse))
                  (local.get $magic))
                (local.get $magic))
              (i32x4.sub
                (f32x4.add
                  (f32x4.mul (v128.load offset=16 (local.get $at)) (local.get $inverse))
                  (local.get $magic))
                (local.get $magic)))))
        (local.get $low)))
      ;; Two to a byte, the low one of a lane; then the four bytes together.
      (local.set $codes (i32x4.dot_i16x8_s (local.get $codes) (local.get $pairs)))
      (v128.store32_lane 0 (local.get $out)
        (i8x16.shuffle 0 4 8 12 0 4 8 12 0 4 8 12 0 4 8 12 (local.get $codes) (local.get $codes)))
      (local.set $out (i32.add (local.get $out) (i32.const 4)))
      (local.set $at (i32.add (local.get $at) (i32.const 32)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end)))))

  ;; Bits of the nearest f16, ties to even; beyond the largest it is that.
  (func $toF16 (param $value f32) (result i32)
    (local $bits i32) (local $sign i32)
    (local.set $bits (i32.reinterpret_f32 (local.get $value)))
    (local.set $sign (i32.and (i32.shr_u (local.get $bits) (i32.const 16)) (i32.const 0x8000)))
    (local.set $bits (i32.and (local.get $bits) (i32.const 0x7fffffff)))
    (if (i32.gt_u (local.get $bits) (i32.const 0x477fe000))
      (then (return (i32.or (local.get $sign) (i32.const 0x7bff)))))
    (i32.or (local.get $sign)
      (if (result i32) (i32.lt_u (local.get $bits) (i32.const 0x38800000))
        ;; Below 2^-14 the sum with 1/2 has the subnormal in its low bits.
        (then (i32.sub
          (i32.reinterpret_f32 (f32.add (f32.reinterpret_i32 (local.get $bits)) (f32.const 0.5)))
          (i32.const 0x3f000000)))
        (else (i32.shr_u
          (i32.add
            (i32.add (local.get $bits) (i32.const 0xc8000fff))
            (i32.and (i32.shr_u (local.get $bits) (i32.const 13)) (i32.const 1)))
          (i32.const 13))))))

  ;; 1 / an f16; 0 of zero.
  (func $inverse (param $half i32) (result f32)
    (local $magnitude i32) (local $value f32)
    (local.set $magnitude (i32.and (local.get $half) (i32.const 0x7fff)))
    (if (i32.eqz (local.get $magnitude)) (then (return (f32.const 0))))
    (local.set $value
      (if (result f32) (i32.lt_u (local.get $magnitude) (i32.const 0x400))
        (then (f32.mul (f32.convert_i32_u (local.get $magnitude)) (f32.const 0x1p-24)))
        (else (f32.reinterpret_i32
          (i32.add (i32.shl (local.get $magnitude) (i32.const 13)) (i32.const 0x38000000))))))
    (f32.div (f32.const 1)
      (if (result f32) (i32.and (local.get $half) (i32.const 0x8000))
        (then (f32.neg (local.get $value)))
        (else (local.get $value)))))
)
