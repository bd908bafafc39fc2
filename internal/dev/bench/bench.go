// Package bench holds what the measuring programs below it share.
package bench

import (
	"slices"
	"time"
)

// Quantile is the smallest value that the fraction q of all does not exceed.
func Quantile[T int64 | float64 | time.Duration](all []T, q float64) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// MS is a duration in milliseconds.
func MS(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
