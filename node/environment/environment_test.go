package environment_test

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/node/environment"
)

var update = flag.Bool("update", false, "rewrite the table in docs/node.md")

const page = "../../docs/node.md"

// The table that people read is the one that the program goes by.
func TestThePageHasTheTable(t *testing.T) {
	body, err := os.ReadFile(page)
	require.NoError(t, err)
	const begin = "| variable | read by | what it does |\n"
	before, rest, found := strings.Cut(string(body), begin)
	require.True(t, found, "%s has the table", page)
	rows, after, _ := strings.Cut(rest, "\n\n")
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(before+environment.Table()+"\n"+after), 0o644))
		return
	}
	require.Equal(t, environment.Table(), begin+rows+"\n", "go test ./node/environment -update writes it")
}

// Who is said to read a variable has it in its sources, and what calico-node reads is in the table.
func TestTheTableIsTrue(t *testing.T) {
	words := map[string][]string{}
	for _, folder := range []string{"node", "felix", "confd", "bird", "typha/client"} {
		words[folder] = wordsOf(t, filepath.Join("../..", folder))
	}
	var names []string
	for _, v := range environment.All() {
		require.NotContains(t, names, v.Name)
		names = append(names, v.Name)
		require.NotEmpty(t, v.Does, v.Name)
		name := v.Name
		if rest, ok := strings.CutPrefix(name, "CALICO_IPV4POOL_"); ok { // made of two words
			require.True(t, slices.Contains(words["node"], "CALICO_IPV4POOL_"))
			name = rest
		} else if rest, ok := strings.CutPrefix(name, "CALICO_IPV6POOL_"); ok {
			require.True(t, slices.Contains(words["node"], "CALICO_IPV6POOL_"))
			name = rest
		}
		if strings.HasSuffix(name, "_AUTODETECTION_METHOD") {
			name = "_AUTODETECTION_METHOD"
		}
		for _, r := range v.Readers {
			require.True(t, slices.Contains(words[r], name), "%s reads %s", r, v.Name)
		}
	}
	variable := regexp.MustCompile(`^(IP6?|AS|[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9])$`)
	for _, w := range words["node"] {
		if !variable.MatchString(w) || strings.HasPrefix(w, "KUBERNETES_SERVICE_") || slices.Contains(poolWords, w) {
			continue
		}
		require.Contains(t, names, w, "calico-node reads %s, which the table lacks", w)
	}
}

// poolWords are parts of names.
var poolWords = []string{"BLOCK_SIZE", "NAT_OUTGOING", "NODE_SELECTOR", "DISABLE_BGP_EXPORT"}

// wordsOf lists the string literals of a folder's sources, and those that struct tags name as environment variables; not
// those of the table.
func wordsOf(t *testing.T, folder string) (words []string) {
	tag := regexp.MustCompile(`env:"([^"]*)"`)
	require.NoError(t, filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "node/environment/") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				text, err := strconv.Unquote(lit.Value)
				require.NoError(t, err)
				words = append(words, text)
				if found := tag.FindStringSubmatch(text); found != nil {
					words = append(words, strings.Split(found[1], ",")...)
				}
			}
			return true
		})
		return nil
	}))
	return words
}

func TestNotes(t *testing.T) {
	require.Equal(t, []string{
		"environment variable CALICO_IPV4POOL_CDIR is not known; did you mean CALICO_IPV4POOL_CIDR?",
		"environment variable USE_POD_CIDR has no effect: the ranges that Kubernetes gives to nodes are known always; usePodCidr in the CNI configuration uses them",
		"environment variable WAIT_FOR_DATASTORE has no effect: start-up always waits, for typha",
	}, environment.Notes([]string{
		"WAIT_FOR_DATASTORE=true", "USE_POD_CIDR=true", "CALICO_IPV4POOL_CDIR=10.0.0.0/8", "CALICO_IPV4POOL_CIDR=10.0.0.0/8", "PATH=/bin",
		"CLUSTER_TYPE=", "IP=autodetect", "CALICO_TYPHA_SERVICE_HOST=10.96.0.1",
	}))
}
