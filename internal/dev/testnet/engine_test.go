package testnet

import (
	"strings"
	"testing"
)

func TestEnginesThatCannotBeUsed(t *testing.T) {
	tests := map[string]struct{ engine, dev, says string }{
		"unknown":   {"docker28", "", "TASKMETA_ENGINE=docker28: want machine or debian14"},
		"not there": {"debian14", t.TempDir(), "run make engines"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TASKMETA_ENGINE", test.engine)
			t.Setenv("TASKMETA_DEV", test.dev)
			if _, err := newEngine(); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v; want %q", err, test.says)
			}
		})
	}
}
