package verb_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-net/muslin/calicoctl/verb"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// cluster is a datastore with a file that tells calicoctl where it is.
type cluster struct {
	t      *testing.T
	server *embedded.Server
	config string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return &cluster{t: t, server: s, config: configFile(t, s.Endpoint())}
}

// initialised is a cluster as typha makes it at its first start.
func (c *cluster) initialised() *cluster {
	c.t.Helper()
	client, err := c.server.Client(c.t.Context())
	require.NoError(c.t, err)
	defer client.Close()
	require.NoError(c.t, datastore.Init(c.t.Context(), client))
	return c
}

// calicos is the data of a cluster that real Calico wrote.
func (c *cluster) calicos() *cluster {
	c.t.Helper()
	text, err := os.ReadFile("testdata/etcd.json")
	require.NoError(c.t, err)
	var keys map[string]json.RawMessage
	require.NoError(c.t, json.Unmarshal(text, &keys))
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.server.Endpoint()}, DialTimeout: 5 * time.Second})
	require.NoError(c.t, err)
	defer client.Close()
	for key, value := range keys {
		var plain string
		if json.Unmarshal(value, &plain) != nil {
			plain = string(value)
		}
		_, err := client.Put(c.t.Context(), key, plain)
		require.NoError(c.t, err)
	}
	return c
}

func configFile(t *testing.T, endpoint string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "calicoctl.cfg")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil,
		"apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata: {}\nspec: {datastoreType: etcdv3, etcdEndpoints: %q}\n", endpoint), 0o600))
	return file
}

// outcome is what a command printed and how it ended.
type outcome struct {
	code           int
	stdout, stderr string
}

func (c *cluster) run(stdin string, args ...string) outcome {
	c.t.Helper()
	return run(c.t, stdin, append([]string{"-c", c.config}, args...)...)
}

func run(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := verb.Run(ctx, "v1.2.3", args, strings.NewReader(stdin), &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

// must runs a command that has to succeed, and returns what it printed.
func (c *cluster) must(args ...string) string {
	c.t.Helper()
	o := c.run("", args...)
	require.Zero(c.t, o.code, "%v: %s", args, o.stderr)
	return o.stdout
}

// changing are the parts of documents that differ from run to run.
var changing = regexp.MustCompile(`(?m)("?(?:uid|creationTimestamp|resourceVersion|clusterGUID)"?: ).*?(,?)$`)

// script runs the commands of a file, each a line that begins with "$ ", and compares what they print with what is below
// them. A command may end in "< FILE". Words are split at blanks; '…' keeps blanks.
func (c *cluster) script(file string) {
	c.t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(c.t, err)
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "$ "):
			command, input, _ := strings.Cut(line[2:], " < ")
			stdin := []byte{}
			if input != "" {
				stdin, err = os.ReadFile(input)
				require.NoError(c.t, err)
			}
			fmt.Fprintln(&out, line)
			o := c.run(string(stdin), words(command)...)
			for printed := range strings.Lines(changing.ReplaceAllString(o.stdout, "$1…$2")) {
				fmt.Fprintln(&out, strings.TrimRight("  "+printed, " \n"))
			}
			for printed := range strings.Lines(strings.ReplaceAll(o.stderr, c.config, "CONFIG")) {
				fmt.Fprintln(&out, strings.TrimRight("! "+printed, " \n"))
			}
			if o.code != 0 {
				fmt.Fprintln(&out, "exit", o.code)
			}
			fmt.Fprintln(&out)
		}
	}
	if *update {
		require.NoError(c.t, os.WriteFile(file, []byte(out.String()), 0o600))
		return
	}
	require.Equal(c.t, string(text), out.String(), "run the test with -update and review the difference")
}

var word = regexp.MustCompile(`'[^']*'|\S+`)

func words(command string) (out []string) {
	for _, w := range word.FindAllString(command, -1) {
		out = append(out, strings.Trim(w, "'"))
	}
	return out
}
