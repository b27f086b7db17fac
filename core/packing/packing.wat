;; What packing experts spends its time in, four values at a time. core/packing.ts loads the binary and says how memory is
;; laid out; `npm run wasm` makes it from this file. Counts are multiples of 8.
(module
  (memory (export "memory") 1)

  ;; Adding and subtracting 1.5 · 2^23 rounds a small f32 to the nearest integer, ties to even.
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
  (func $scale (param $from i32) (param $end i32) (result f32)
    (local $at i32) (local $high v128) (local $low v128) (local $v v128)
    (local $extreme f32) (local $least f32) (local $inverse v128)
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
    (if (f32.gt (f32.neg (local.get $least)) (local.get $extreme))
      (then (local.set $extreme (local.get $least))))
    ;; Far below what an f16 scale can tell from zero, and dividing by it would overflow.
    (if (f32.lt (f32.abs (local.get $extreme)) (f32.const 1e-20))
      (then (return (f32.const 0))))
    (local.set $inverse (f32x4.splat (local.get $extreme)))
    (call $tryFar (local.get $from) (local.get $end)
      (f32x4.div (v128.const f32x4 -8 -7.5 -8.5 -9) (local.get $inverse)))
    (local.set $scales) (local.set $gains)
    (call $tryNear (local.get $from) (local.get $end)
      (f32x4.div (v128.const f32x4 -7 -6.6 7 7.5) (local.get $inverse)))
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
    (f32x4.extract_lane 0 (local.get $scales)))

  ;; Lane by lane the scale with the larger gain, the first where they are equal: (gains, scales).
  (func $choose (param $gains v128) (param $scales v128) (param $otherGains v128)
    (param $otherScales v128) (result v128 v128)
    (local $other v128)
    (local.set $other (f32x4.gt (local.get $otherGains) (local.get $gains)))
    (v128.bitselect (local.get $otherGains) (local.get $gains) (local.get $other))
    (v128.bitselect (local.get $otherScales) (local.get $scales) (local.get $other)))

  ;; A value times $inverse, rounded to −8 … 7.
  (func $rounded (param $v v128) (param $inverse v128) (result v128)
    (f32x4.sub
      (f32x4.add
        (f32x4.pmin
          (f32x4.pmax (f32x4.mul (local.get $v) (local.get $inverse)) (v128.const f32x4 -8 -8 -8 -8))
          (v128.const f32x4 7 7 7 7))
        (f32x4.splat (global.get $round)))
      (f32x4.splat (global.get $round))))

  ;; For four inverse scales: what the best scale for the integers they give gains, and that scale.
  ;; With integers q the scale Σvq/Σq² leaves the error Σv² − (Σvq)²/Σq².
  ;; These reach no further than −7 … 7, which needs no bounds, but for the last.
  (func $tryNear (param $at i32) (param $end i32) (param $inverses v128) (result v128 v128)
    (local $v v128) (local $q v128) (local $m v128) (local $high v128)
    (local $i0 v128) (local $i1 v128) (local $i2 v128) (local $i3 v128)
    (local $p0 v128) (local $p1 v128) (local $p2 v128) (local $p3 v128)
    (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)
    (local.set $high (v128.const f32x4 7 7 7 7))
    (local.set $m (f32x4.splat (global.get $round)))
    (local.set $i0 (f32x4.splat (f32x4.extract_lane 0 (local.get $inverses))))
    (local.set $i1 (f32x4.splat (f32x4.extract_lane 1 (local.get $inverses))))
    (local.set $i2 (f32x4.splat (f32x4.extract_lane 2 (local.get $inverses))))
    (local.set $i3 (f32x4.splat (f32x4.extract_lane 3 (local.get $inverses))))
    (loop $next
      (local.set $v (v128.load (local.get $at)))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.mul (local.get $v) (local.get $i0))
        (local.get $m)) (local.get $m)))
      (local.set $p0 (f32x4.add (local.get $p0) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s0 (f32x4.add (local.get $s0) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.mul (local.get $v) (local.get $i1))
        (local.get $m)) (local.get $m)))
      (local.set $p1 (f32x4.add (local.get $p1) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s1 (f32x4.add (local.get $s1) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.mul (local.get $v) (local.get $i2))
        (local.get $m)) (local.get $m)))
      (local.set $p2 (f32x4.add (local.get $p2) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s2 (f32x4.add (local.get $s2) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.pmin (f32x4.mul (local.get $v) (local.get $i3)) (local.get $high))
        (local.get $m)) (local.get $m)))
      (local.set $p3 (f32x4.add (local.get $p3) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s3 (f32x4.add (local.get $s3) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $v (call $sums (local.get $p0) (local.get $p1) (local.get $p2) (local.get $p3)))
    (local.set $q (call $sums (local.get $s0) (local.get $s1) (local.get $s2) (local.get $s3)))
    (f32x4.div (f32x4.mul (local.get $v) (local.get $v)) (local.get $q))
    (f32x4.div (local.get $v) (local.get $q)))

  ;; The same for reaches beyond; the first two end at −8 by themselves.
  (func $tryFar (param $at i32) (param $end i32) (param $inverses v128) (result v128 v128)
    (local $v v128) (local $q v128) (local $m v128) (local $low v128) (local $high v128)
    (local $i0 v128) (local $i1 v128) (local $i2 v128) (local $i3 v128)
    (local $p0 v128) (local $p1 v128) (local $p2 v128) (local $p3 v128)
    (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)
    (local.set $low (v128.const f32x4 -8 -8 -8 -8))
    (local.set $high (v128.const f32x4 7 7 7 7))
    (local.set $m (f32x4.splat (global.get $round)))
    (local.set $i0 (f32x4.splat (f32x4.extract_lane 0 (local.get $inverses))))
    (local.set $i1 (f32x4.splat (f32x4.extract_lane 1 (local.get $inverses))))
    (local.set $i2 (f32x4.splat (f32x4.extract_lane 2 (local.get $inverses))))
    (local.set $i3 (f32x4.splat (f32x4.extract_lane 3 (local.get $inverses))))
    (loop $next
      (local.set $v (v128.load (local.get $at)))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.pmin (f32x4.mul (local.get $v) (local.get $i0)) (local.get $high))
        (local.get $m)) (local.get $m)))
      (local.set $p0 (f32x4.add (local.get $p0) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s0 (f32x4.add (local.get $s0) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.pmin (f32x4.mul (local.get $v) (local.get $i1)) (local.get $high))
        (local.get $m)) (local.get $m)))
      (local.set $p1 (f32x4.add (local.get $p1) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s1 (f32x4.add (local.get $s1) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.pmin (f32x4.pmax (f32x4.mul (local.get $v) (local.get $i2)) (local.get $low)) (local.get $high))
        (local.get $m)) (local.get $m)))
      (local.set $p2 (f32x4.add (local.get $p2) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s2 (f32x4.add (local.get $s2) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $q (f32x4.sub (f32x4.add
        (f32x4.pmin (f32x4.pmax (f32x4.mul (local.get $v) (local.get $i3)) (local.get $low)) (local.get $high))
        (local.get $m)) (local.get $m)))
      (local.set $p3 (f32x4.add (local.get $p3) (f32x4.mul (local.get $v) (local.get $q))))
      (local.set $s3 (f32x4.add (local.get $s3) (f32x4.mul (local.get $q) (local.get $q))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $v (call $sums (local.get $p0) (local.get $p1) (local.get $p2) (local.get $p3)))
    (local.set $q (call $sums (local.get $s0) (local.get $s1) (local.get $s2) (local.get $s3)))
    (f32x4.div (f32x4.mul (local.get $v) (local.get $v)) (local.get $q))
    (f32x4.div (local.get $v) (local.get $q)))

  ;; The sums of the lanes of four vectors, as one.
  (func $sums (param $a v128) (param $b v128) (param $c v128) (param $d v128) (result v128)
    (local.set $a (f32x4.add
      (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $a) (local.get $b))
      (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $a) (local.get $b))))
    (local.set $c (f32x4.add
      (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $c) (local.get $d))
      (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $c) (local.get $d))))
    (f32x4.add
      (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $a) (local.get $c))
      (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $a) (local.get $c))))

  ;; Values · $inverse + 8, rounded to 0 … 15, eight to a u32.
  (func $nibbles (param $at i32) (param $end i32) (param $out i32) (param $scale f32)
    (local $inverse v128) (local $word v128)
    (local.set $inverse (f32x4.splat (local.get $scale)))
    (loop $next
      (local.set $word (v128.or
        (i32x4.mul (call $code (v128.load (local.get $at)) (local.get $inverse))
          (v128.const i32x4 1 16 256 4096))
        (i32x4.mul (call $code (v128.load offset=16 (local.get $at)) (local.get $inverse))
          (v128.const i32x4 0x10000 0x100000 0x1000000 0x10000000))))
      (local.set $word (v128.or (local.get $word)
        (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $word) (local.get $word))))
      (i32.store (local.get $out) (i32.or
        (i32x4.extract_lane 0 (local.get $word)) (i32x4.extract_lane 1 (local.get $word))))
      (local.set $out (i32.add (local.get $out) (i32.const 4)))
      (local.set $at (i32.add (local.get $at) (i32.const 32)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end)))))

  ;; The integers 0 … 15 of four values: the low bits of what rounding leaves.
  (func $code (param $v v128) (param $inverse v128) (result v128)
    (v128.and
      (f32x4.add
        (f32x4.add (call $rounded (local.get $v) (local.get $inverse)) (v128.const f32x4 8 8 8 8))
        (f32x4.splat (global.get $round)))
      (v128.const i32x4 15 15 15 15)))

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
