package enginetest

import "testing"

type group struct {
	name  string
	tests []test
}

// RunSuite runs everything against the engine that make returns.
func RunSuite(t *testing.T, make New) {
	RunPair(t, make)
	group{"ends", endTests()}.run(t, make)
}

// RunPair runs what two engines have to do with each other against those that make
// returns: the client's first, then the server's.
func RunPair(t *testing.T, make New) {
	for _, g := range [...]group{
		{"streams", streamTests()},
		{"identity", identityTests()},
		{"pool", poolTests()},
		{"life", lifeTests()},
		{"limits", limitTests()},
		{"places", placeTests()},
		{"wire", wireTests()},
		{"opening", openingTests()},
		{"early", earlyTests()},
		{"schedules", scheduleTests()},
		{"keys", keyTests()},
		{"bounds", boundTests()},
		{"foreign", foreignTests()},
	} {
		g.run(t, make)
	}
}

func (g group) run(t *testing.T, make New) {
	t.Run(g.name, func(t *testing.T) {
		for _, tt := range g.tests {
			t.Run(tt.name, func(t *testing.T) { tt.run(t, make) })
		}
	})
}

type test struct {
	name string
	run  func(*testing.T, New)
}
