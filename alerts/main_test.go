package alerts

import (
	"os"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

func TestMain(m *testing.M) { os.Exit(needs.Run(m)) }
