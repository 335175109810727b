package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const konvoy = `
kind: ClusterConfiguration
apiVersion: konvoy.mesosphere.io/v1beta2
spec: {kubernetes: {containerNetworking: {calico: {encapsulation: vxlan}}}}
`

// write writes a file of a test, and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// rendered is what is written to standard output.
func rendered(t *testing.T, in string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, run(args, strings.NewReader(in), &out), "%v", args)
	return out.String()
}

func TestRender(t *testing.T) {
	description, values := write(t, "cluster.yaml", konvoy), write(t, "values.yaml", "cni: {mtu: 1400}\n")
	const definition, vxlan, mtu = "kind: CustomResourceDefinition", `calico_backend: "vxlan"`, `veth_mtu: "1400"`
	for _, c := range []struct {
		in    string
		args  []string
		has   []string
		lacks []string
	}{
		{has: []string{definition, `calico_backend: "bird"`}, lacks: []string{vxlan, mtu}},
		{args: []string{"-crds=false"}, has: []string{`calico_backend: "bird"`}, lacks: []string{definition}},
		{args: []string{"-f", description}, has: []string{definition, vxlan}, lacks: []string{mtu}},
		{in: konvoy, args: []string{"-f", "-"}, has: []string{definition, vxlan}},
		{args: []string{"-values", values}, has: []string{mtu}, lacks: []string{vxlan}},
		{args: []string{"-f", description, "-values", values}, has: []string{vxlan, mtu}},
		{in: "backend: bird", args: []string{"-f", description, "-values", "-"}, has: []string{`calico_backend: "bird"`}, lacks: []string{vxlan}},
	} {
		text := rendered(t, c.in, c.args...)
		for _, part := range c.has {
			require.Contains(t, text, part, "%v", c.args)
		}
		for _, part := range c.lacks {
			require.NotContains(t, text, part, "%v", c.args)
		}
	}
}

// TestAFolderHasTheSame: the files of -o are what is written to standard output otherwise.
func TestAFolderHasTheSame(t *testing.T) {
	dir := t.TempDir()
	require.Empty(t, rendered(t, konvoy, "-f", "-", "-o", dir))
	all := rendered(t, konvoy, "-f", "-")
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Contains(t, all, "kind: DaemonSet")
	documents := 0
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		require.NoError(t, err)
		for document := range strings.SplitSeq(strings.Trim(string(text), "-\n"), "\n---\n") {
			require.Contains(t, all, document, f.Name())
			documents++
		}
	}
	require.Equal(t, len(strings.Split(strings.Trim(all, "-\n"), "\n---\n")), documents)
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	broken := write(t, "broken.yaml", strings.Replace(konvoy, "vxlan", "geneve", 1))
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"cluster.yaml"}, `argument "cluster.yaml" is one too many; give the description of the cluster by -f`},
		{[]string{"-f", "missing.yaml"}, "open missing.yaml: no such file"},
		{[]string{"-f", broken}, broken + `:4: spec.kubernetes.containerNetworking.calico.encapsulation: "geneve" is not allowed`},
		{[]string{"-values", write(t, "values.yaml", "backedn: vxlan")}, `values.yaml: values: `},
		{[]string{"-o", filepath.Join(t.TempDir(), "missing")}, "no such file or directory"},
	} {
		var out bytes.Buffer
		require.ErrorContains(t, run(c.args, strings.NewReader(""), &out), c.says, "%v", c.args)
		require.Empty(t, out.String(), "%v", c.args)
	}
	require.ErrorIs(t, run([]string{"-h"}, strings.NewReader(""), &bytes.Buffer{}), flag.ErrHelp)
}
