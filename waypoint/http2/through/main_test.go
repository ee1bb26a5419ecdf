// Package through has tests only: clients and servers of others speak to each other through the engines, over sockets.
package through

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
