package verb_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tables are those that real calicoctl prints of the same data, to the blank; only blanks at the ends of lines, and
// columns' odd extra width in two wide tables, are its own.
func TestTablesAreCalicos(t *testing.T) {
	t.Parallel()
	c := newCluster(t).calicos()
	for _, file := range []string{"testdata/calicoctl-get.txt", "testdata/calicoctl-get-wide.txt"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for section := range strings.SplitSeq(string(text), "--- get ") {
			args, want, _ := strings.Cut(section, "\n")
			if args == "" || strings.Contains(want, "real calicoctl panics") {
				continue
			}
			t.Run(args, func(t *testing.T) {
				command := append([]string{"get"}, strings.Fields(args)...)
				if namespaced := strings.HasPrefix(want, "NAMESPACE"); namespaced {
					command = append(command, "-A")
				}
				got := c.must(command...)
				if args == "node -o wide" || args == "wep -o wide" {
					require.Equal(t, cells(want), cells(got))
					return
				}
				require.Equal(t, trimmed(want), trimmed(got))
			})
		}
	}
}

func trimmed(table string) string {
	var out []string
	for line := range strings.SplitSeq(strings.TrimSpace(table), "\n") {
		out = append(out, strings.TrimRight(line, " "))
	}
	return strings.Join(out, "\n")
}

func cells(table string) (out [][]string) {
	for line := range strings.SplitSeq(strings.TrimSpace(table), "\n") {
		out = append(out, strings.Fields(line))
	}
	return out
}
