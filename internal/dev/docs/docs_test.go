// Package docs_test holds the documents of docs/ to what the programs do.
package docs_test

import (
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
	"unicode"
)

const root = "../../.."

// A message is a text that the programs print when something is wrong.
type message struct {
	at   string // where it stands in the source
	text string
}

// Those of its words that never change: what stands between the values.
var value = regexp.MustCompile(`%(\[\d\])?[-+#0 .\d]*[a-zA-Z]`)

func (m message) words() []string {
	var words []string
	for _, part := range value.Split(m.text, -1) {
		if part = normal(strings.Trim(part, " :,;()`\"'")); len(part) > 3 {
			words = append(words, part)
		}
	}
	return words
}

// neverPrinted are errors that one function tells another, and nobody else.
var neverPrinted = []string{"nothing to change"}

func normal(s string) string { return strings.ToLower(strings.Join(strings.Fields(s), " ")) }

// Each message is found in the document that says what to do about it. Of a message with
// values in it, the words between them are looked for. A message that only says what was
// being done when another came ("opening X: …") is not: the other is.
func TestEveryMessageIsInTroubleshooting(t *testing.T) {
	t.Parallel()
	doc := normal(read(t, "docs/troubleshooting.md"))
	found := messages(t)
	if len(found) < 100 {
		t.Fatalf("only %d messages are found: is the search blind?", len(found))
	}
	for _, m := range found {
		if slices.Contains(neverPrinted, m.text) {
			continue
		}
		for _, w := range m.words() {
			if !strings.Contains(doc, w) {
				t.Errorf("%s: docs/troubleshooting.md does not have %q of the message %q: add it under its symptom, with what to do", m.at, w, m.text)
			}
		}
	}
}

// messages are those in the sources of the three programs.
func messages(t *testing.T) []message {
	t.Helper()
	// What only tests, the demo and the makers of packages run.
	tools := []string{"internal/dev", "internal/packaging"}
	var all []message
	for _, top := range []string{"plugins", "resolver", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(filepath.ToSlash(path), root+"/")
			if entry.IsDir() && slices.Contains(tools, name) {
				return fs.SkipDir
			}
			if entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return nil
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if text, ok := printed(n); ok {
					line := files.Position(n.Pos()).Line
					all = append(all, message{name + ":" + strconv.Itoa(line), text})
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// printed returns the text of a node that makes an error, or logs one.
func printed(n ast.Node) (string, bool) {
	if kv, ok := n.(*ast.KeyValueExpr); ok { // a refusal, told by its code
		if key, ok := kv.Key.(*ast.Ident); ok && key.Name == "code" {
			return literal(kv.Value)
		}
		return "", false
	}
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", false
	}
	fn, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	switch fn.Sel.Name {
	case "New":
		if pkg, ok := fn.X.(*ast.Ident); !ok || pkg.Name != "errors" {
			return "", false
		}
		return literal(call.Args[0])
	case "Errorf":
		text, ok := literal(call.Args[0])
		context := strings.HasSuffix(text, ": %w") && strings.Count(text, "%w") == 1
		return text, ok && !context
	case "Warn", "Error":
		return literal(call.Args[0])
	}
	return "", false
}

// literal is the text of a string literal, or of several that are added.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.BinaryExpr:
		left, _ := literal(e.X)
		right, _ := literal(e.Y)
		return left + "%v" + right, left+right != ""
	}
	return "", false
}

// A link of markdown that is not to another site.
var link = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	docs, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(docs) < 7 {
		t.Fatalf("%v are all documents (%v)", docs, err)
	}
	for _, doc := range append(docs, root+"/README.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target := doc
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(doc), m[1])
			}
			content, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s: %v", doc, err)
			} else if m[2] != "" && !slices.Contains(anchors(string(content)), m[2]) {
				t.Errorf("%s: %s has no heading #%s", doc, target, m[2])
			}
		}
	}
}

// anchors are those that GitHub gives the headings of a document.
func anchors(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		kept := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(strings.TrimLeft(line, "#")))
		all = append(all, kept)
	}
	return all
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
