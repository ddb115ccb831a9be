"""Reports as Markdown and as pages: text, charts and templates."""
