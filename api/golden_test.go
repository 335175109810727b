package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// documents cuts a test file at its separators; each document keeps its comments.
func documents(t testing.TB, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	return strings.Split(string(text), "\n---\n")
}

// TestGood decodes every good example as users write them, defaults and validates it, and compares what would be stored
// with the golden file. The CRD of the kind has to accept it as well, before and after.
func TestGood(t *testing.T) {
	for _, kind := range api.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			base := filepath.Join("testdata", "good", strings.ToLower(kind.Name))
			var golden bytes.Buffer
			for _, doc := range documents(t, base+".yaml") {
				objects, err := api.Decode([]byte(doc))
				require.NoError(t, err)
				require.Len(t, objects, 1)
				o := objects[0]
				require.Equal(t, kind.Name, api.KindOf(o).Name)
				if !slices.Contains(withoutCRD, kind.Name) {
					text, err := yaml.YAMLToJSON([]byte(doc))
					require.NoError(t, err)
					require.NoError(t, readCRD(t, kind).judge(numbers(t, text), nil), doc)
				}
				stored := requireGood(t, o)
				require.NoError(t, json.Indent(&golden, stored, "", " "))
				golden.WriteByte('\n')
			}
			compare(t, base+".json", golden.Bytes())
		})
	}
}

// requireGood checks what holds for every good object, and returns it as it would be stored.
func requireGood(t *testing.T, o api.Object) []byte {
	t.Helper()
	kind := api.KindOf(o)
	o.Default()
	require.NoError(t, o.Validate())
	once, err := api.Encode(o)
	require.NoError(t, err)
	o.Default()
	twice, err := api.Encode(o)
	require.NoError(t, err)
	require.Equal(t, string(once), string(twice), "Default is not idempotent")

	back, err := api.DecodeStored(kind, once)
	require.NoError(t, err)
	require.True(t, back.Residue().IsEmpty(), "the type does not know all that it writes")
	require.NoError(t, back.Validate())
	again, err := api.Encode(back)
	require.NoError(t, err)
	require.Equal(t, string(once), string(again), "Encode(DecodeStored(x)) is not x")

	copied := o.DeepCopyObject().(api.Object)
	require.Equal(t, o, copied)
	require.NoError(t, api.ValidateUpdate(o, copied))
	if !slices.Contains(withoutCRD, kind.Name) {
		require.NoError(t, readCRD(t, kind).judge(asServer(t, o), asServer(t, o)), "the CRD refuses what Default made")
	}
	return once
}

// TestBad has one document for each rule. Its comments say what is expected: "# want:" lines are the exact errors, and
// "# schema:" tells whether the CRD refuses it too. With -update both are rewritten from what happens.
func TestBad(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "bad", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			var out []string
			for _, doc := range documents(t, file) {
				out = append(out, badCase(t, doc))
			}
			compare(t, file, []byte(strings.Join(out, "\n---\n")))
		})
	}
}

// badCase checks one bad document, and returns it with what happened in its comments.
func badCase(t *testing.T, doc string) string {
	t.Helper()
	var body []string
	for line := range strings.SplitSeq(strings.TrimRight(doc, "\n"), "\n") {
		if !strings.HasPrefix(line, "# want: ") && !strings.HasPrefix(line, "# schema: ") {
			body = append(body, line)
		}
	}
	text := strings.Join(body, "\n") + "\n"
	err := judgeGo(text)
	require.Error(t, err, text)
	var errs api.Errors
	require.ErrorAs(t, err, &errs, text)
	var comments []string
	for _, e := range errs {
		assert.NotEmpty(t, e.Field, "an error without a field: %s", e)
		assert.NotEmpty(t, e.Reason, "an error without a reason: %s", e)
		assert.NotEmpty(t, e.Fix, "an error without a fix: %s", e)
		assert.NotContains(t, e.Error(), "\n", "an error of several lines")
		comments = append(comments, "# want: "+e.Error())
	}
	comments = append(comments, "# schema: "+judgeSchema(t, text))
	title := 0
	for title < len(body) && strings.HasPrefix(body[title], "#") {
		title++
	}
	return strings.Join(slices.Insert(slices.Clone(body), title, comments...), "\n") + "\n"
}

// judgeGo is what happens to a document on its way into a datastore.
func judgeGo(text string) error {
	objects, err := api.Decode([]byte(text))
	if err != nil {
		return err
	}
	objects[0].Default()
	return objects[0].Validate()
}

// judgeSchema tells what a Kubernetes API server says to a document.
func judgeSchema(t *testing.T, text string) string {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	o := numbers(t, asJSON)
	name, _ := o["kind"].(string)
	kind, ok := api.LookupKind(name)
	switch {
	case !ok || slices.Contains(withoutCRD, kind.Name):
		return "has none"
	case readCRD(t, kind).judge(o, nil) != nil:
		return "refuses"
	default:
		return "accepts"
	}
}

// compare holds what came out against a golden file.
func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o644))
		return
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run the test with -update")
	require.Equal(t, string(want), string(got), fmt.Sprintf("%s differs; if that is right, run the test with -update", file))
}
