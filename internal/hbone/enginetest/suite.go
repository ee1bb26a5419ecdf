package enginetest

import "testing"

// RunSuite runs everything against the engines that make returns.
func RunSuite(t *testing.T, make New) {
	for _, group := range [...]struct {
		name  string
		tests []test
	}{
		{"streams", streamTests()},
		{"identity", identityTests()},
		{"pool", poolTests()},
		{"life", lifeTests()},
		{"limits", limitTests()},
		{"wire", wireTests()},
		{"opening", openingTests()},
		{"early", earlyTests()},
		{"schedules", scheduleTests()},
		{"keys", keyTests()},
		{"bounds", boundTests()},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, tt := range group.tests {
				t.Run(tt.name, func(t *testing.T) { tt.run(t, make) })
			}
		})
	}
}

type test struct {
	name string
	run  func(*testing.T, New)
}
